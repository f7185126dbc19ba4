"""The public face of the server: an ASGI application that refuses early and answers in types.

Why it stands in front of Ray Serve's replicas instead of Serve's own HTTP proxy. Seen in ray 2.60
(`serve/_private/proxy.py`, `http_util.py`): the proxy copies a body into a queue without a bound as fast as the client
sends it, whether or not a replica reads; it has no limit of a body's size, no deadline for heads or bodies
(`request_timeout_s` starts after the head), and authentication in a replica comes when the body is already held. Here
the order is: head, token, type, size, room, then body, and only then a replica.

    GET  /health  no token      200 where at least one replica runs, else 503
    GET  /info    token         what is served, its fingerprint and the limits
    POST /score   token         `?batched=1` asks for batching; default: strict
                                header `Zoomiqa-Fingerprint`: answer only if this is the fingerprint

Every refusal is `{"error": {"type", "message", "retryable"}}` (`errors.KINDS`) and closes the connection.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from zoomiqa_reward.serving.errors import ServingError
from zoomiqa_reward.serving.scorer import Answer
from zoomiqa_reward.serving.spec import Limits
from zoomiqa_reward.serving.wire import (
    PNG_TYPE,
    SAFETENSORS_TYPE,
    WIRE_VERSION,
    ScoreItem,
    ScoreRow,
    decode_request,
    oversize,
)

FINGERPRINT_HEADER = "zoomiqa-fingerprint"
DRAIN_BYTES = 1 << 18
"""Of a refused body, read and thrown away: closing on unread bytes resets the connection, and the client would lose
the reason. A larger one has to live with that, unless it waits for `100 Continue`."""
DRAIN_S = 0.5
HEALTH_S = 1.0
"""How long a count of replicas is believed, so that asking for it cannot load the cluster."""

Reply = tuple[int, dict[str, Any]]


class Backend(Protocol):
    """Who scores: Ray Serve's replicas, or in a test a scorer of this process."""

    async def score(self, item: ScoreItem, *, batched: bool) -> Answer:
        """Return one image's answer. Raises ServingError: replica_died, busy, unavailable, internal."""
        ...

    async def running(self) -> int:
        """Return how many replicas run."""
        ...


class Gateway:
    """The application. `description` is `Scorer.describe()`; no tokens: everybody may ask."""

    def __init__(
        self, backend: Backend, description: dict[str, Any], tokens: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self.backend = backend
        self.limits = limits or Limits()
        self.description = description
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._held_bytes = 0
        self._pending_images = 0
        self._running = (0, -HEALTH_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"scope {scope['type']!r}: run with lifespan='off' and ws='none'")
        request = Request(scope, receive)
        try:
            status, body = await self._answer(request)
            headers = {}
        except ClientDisconnect:
            return
        except ServingError as error:
            await _drain(request)
            status, body = error.status, {"error": error.as_json()}
            headers = {"connection": "close"}
            if error.status == 401:
                headers["www-authenticate"] = "Bearer"
            if error.status == 503:
                headers["retry-after"] = "1"
        await _send(send, status, body, headers)

    async def _answer(self, request: Request) -> Reply:
        path, method = request.url.path, request.method
        wanted = {"/health": "GET", "/info": "GET", "/score": "POST"}.get(path)
        if wanted is None:
            raise ServingError("not_found", f"{path[:100]}: there are /health, /info and /score")
        if method != wanted:
            raise ServingError("method_not_allowed", f"{path} is asked with {wanted}")
        if path == "/health":
            running = await self._count_running()
            return (200 if running else 503), {"status": "ok" if running else "no replica", "replicas": running}
        self._authorise(request)
        if path == "/info":
            return 200, self._info() | {"replicas": await self._count_running()}
        return await self._score(request)

    def _info(self) -> dict[str, Any]:
        return {"wire": WIRE_VERSION, **self.description, "limits": asdict(self.limits)}

    async def _count_running(self) -> int:
        count, at = self._running
        if time.monotonic() - at >= HEALTH_S:
            count = await self.backend.running()
            self._running = (count, time.monotonic())
        return count

    def _authorise(self, request: Request) -> None:
        """Compare with every token, in a time that depends neither on which one fits nor on how far one does."""
        if not self._digests:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        matches = [hmac.compare_digest(digest, accepted) for accepted in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServingError(
                "unauthorized", "send the header 'Authorization: Bearer TOKEN' with a token that is known"
            )

    async def _score(self, request: Request) -> Reply:
        batched = self._wants_batching(request)
        fingerprint = self.description["fingerprint_batched" if batched else "fingerprint"]
        expected = request.headers.get(FINGERPRINT_HEADER, fingerprint)
        if expected != fingerprint:
            raise ServingError("fingerprint_mismatch", f"this server's is {fingerprint}, not {expected[:64]}")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (SAFETENSORS_TYPE, PNG_TYPE):
            raise ServingError("unsupported_media_type", f"{kind[:64]!r}: send {SAFETENSORS_TYPE} or {PNG_TYPE}")
        async with self._room(self._length(request)):
            body = await self._read(request)
            items = await asyncio.to_thread(decode_request, body, kind, self.limits)
            del body
            rows = await self._rows([self._with_needs(item) for item in items], batched, fingerprint)
        return 200, {"fingerprint": fingerprint, "batched": batched, "images": [row.as_json() for row in rows]}

    def _wants_batching(self, request: Request) -> bool:
        given = request.query_params.get("batched", "0")
        if given not in ("0", "1"):
            raise ServingError("malformed", f"batched={given[:20]!r}: must be 0 or 1")
        return given == "1"

    def _length(self, request: Request) -> int:
        given = request.headers.get("content-length")
        if given is None or "transfer-encoding" in request.headers:  # whose chunks would count, not the length
            raise ServingError("length_required", "send a Content-Length; a body in chunks is not taken")
        if int(given) > self.limits.max_body_bytes:  # h11 has seen that it is a number
            raise ServingError("too_large", f"{given} bytes; at most {self.limits.max_body_bytes} a request")
        return int(given)

    @asynccontextmanager
    async def _room(self, length: int) -> AsyncIterator[None]:
        """Hold the body's bytes against the limit until it is answered."""
        if self._held_bytes + length > self.limits.max_held_bytes:
            raise ServingError("busy", f"{self._held_bytes} bytes are being worked on; try again")
        self._held_bytes += length
        try:
            yield
        finally:
            self._held_bytes -= length

    async def _read(self, request: Request) -> bytes:
        parts = []
        try:
            async with asyncio.timeout(self.limits.read_timeout_s):
                async for chunk in request.stream():
                    parts.append(chunk)
        except TimeoutError as error:
            raise ServingError("read_timeout", f"the body took over {self.limits.read_timeout_s} s") from error
        return b"".join(parts)

    def _with_needs(self, item: ScoreItem) -> ScoreItem:
        """Return the item with what the reward needs and nothing else. Raises ServingError (malformed)."""
        needs = self.description["needs"]
        given = {"lq": item.lq, "hr": item.hr, "prompts": item.prompt}
        for name in needs:
            if given[name] is None:
                wanted = "text 'prompt.N'" if name == "prompts" else f"tensor '{name}.N'"
                raise ServingError("malformed", f"reward {self.description['name']!r} needs a {wanted} for each image")
        return ScoreItem(
            image=item.image, lq=item.lq if "lq" in needs else None, hr=item.hr if "hr" in needs else None,
            prompt=item.prompt if "prompts" in needs else None,
        )  # fmt: skip

    async def _rows(self, items: list[ScoreItem], batched: bool, fingerprint: str) -> list[ScoreRow]:
        if self._pending_images + len(items) > self.limits.max_pending_images:
            raise ServingError("busy", f"{self._pending_images} images are waiting; try again")
        self._pending_images += len(items)
        tasks = [asyncio.create_task(self._row(item, batched, fingerprint)) for item in items]
        try:
            await asyncio.wait(tasks, timeout=self.limits.compute_timeout_s)
        finally:
            self._pending_images -= len(items)
            for task in tasks:
                task.cancel()  # those that are done do not mind
        late = ScoreRow.failed("compute_timeout", f"not scored within {self.limits.compute_timeout_s} s")
        return [task.result() if task.done() and not task.cancelled() else late for task in tasks]

    async def _row(self, item: ScoreItem, batched: bool, fingerprint: str) -> ScoreRow:
        if (reason := oversize(item, self.limits.max_pixels)) is not None:
            return ScoreRow.failed("too_large", reason)
        try:
            answer = await self.backend.score(item, batched=batched)
        except ServingError as error:
            return ScoreRow.failed(error.kind, error.message)
        if answer.fingerprint != fingerprint:
            return ScoreRow.failed(
                "fingerprint_mismatch", f"a replica came back with another model: {answer.fingerprint}"
            )
        return answer.row


async def _drain(request: Request) -> None:
    """Read a little of a body that is refused, and keep none of it."""
    taken = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            if request.headers.get("expect", "").lower() != "100-continue" and int(
                request.headers.get("content-length", "0")
            ):
                async for chunk in request.stream():
                    taken += len(chunk)
                    if taken >= DRAIN_BYTES:
                        return
    except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it has been read to its end before
        return


async def _send(send: Send, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    data = json.dumps(body, allow_nan=False).encode()
    head = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    encoded = [(key.encode(), value.encode()) for key, value in head.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
