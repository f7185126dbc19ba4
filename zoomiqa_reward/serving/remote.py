"""`RemoteReward`: use a reward on a server like a local one."""

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, split_images
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, needed_inputs
from zoomiqa_reward.serving.connection import Connections
from zoomiqa_reward.serving.errors import FingerprintError, ServingError
from zoomiqa_reward.serving.wire import (
    MAX_HEADER_BYTES,
    SAFETENSORS_TYPE,
    TRANSPORTS,
    WIRE_VERSION,
    ScoreItem,
    ScoreRow,
    encode_image,
    encode_request,
    oversize,
)

TOKEN_VARIABLE = "ZOOMIQA_TOKEN"
CHUNK_IMAGES = 16
"""Largest number of images per request, so that memory holds few of them and a retry sends few."""
_HEADER_BYTES = 4096  # of a request beyond its pixels, with room to spare for the names of `CHUNK_IMAGES`
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 10.0
_JITTER = random.Random()
"""A generator for waiting times alone, so that the random numbers of the process do not move."""
_STOPS = ("unauthorized", "fingerprint_mismatch")  # no image's failure: the set-up is wrong


class RemoteReward(Reward):
    """The reward of the server at `url`. The client needs no extra.

    Scores equal those of the same local reward bit for bit if the replicas use the same libraries and the same number
    of torch threads; with batched=True they agree within 1e-4. The fingerprint is that of the reward itself, so caches
    are shared. After a temporary failure (a replica died, the server is busy or not reachable) images are sent again,
    with growing pauses. An image that still has no value is NaN with `valid=False`.
    """

    parts = ()
    modules = ()

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        fingerprint: str | None = None,
        batched: bool = False,
        transport: str = "auto",
        attempts: int = 4,
        connections: int = 4,
        timeout_s: float = 330.0,
    ) -> None:
        """Connect to the server at `url` (`http://host:port`) and read which reward it serves.

        token: by default the variable ZOOMIQA_TOKEN. fingerprint: refuse any other model; by default the model found
        now is required from then on, also after a restart of the server. transport: `auto` sends PNG if that is
        exact and raw floats otherwise; `png` and `float` force one. attempts: largest number of times an image is sent.
        connections: simultaneous requests. timeout_s: of each network wait; must exceed the server's
        compute_timeout_s.
        Raises FingerprintError, ServingError (unauthorized, unavailable, ...), ValueError.
        """
        if transport not in TRANSPORTS:
            raise ValueError(f"transport={transport!r}: must be one of {', '.join(TRANSPORTS)}")
        if attempts < 1 or connections < 1:
            raise ValueError(f"attempts={attempts}, connections={connections}: must be at least 1")
        self.url = url.rstrip("/")
        self.batched = batched
        self.transport = transport
        self._attempts = attempts
        self._workers = connections
        self._connections = Connections(
            self.url, token=os.environ.get(TOKEN_VARIABLE) if token is None else token, timeout_s=timeout_s
        )
        try:
            self.info: dict[str, Any] = self._retried(lambda: self._connections.ask("GET", "/info"))
            """What the server says of itself: `/info`."""
            self._read_info()
            if fingerprint is not None and fingerprint != self.fingerprint:
                raise FingerprintError(
                    f"{self.url} serves {self.name!r} with {self.fingerprint}, expected {fingerprint}"
                )
        except BaseException:
            self.close()
            raise

    def _read_info(self) -> None:
        if (wire := self.info.get("wire", WIRE_VERSION)) != WIRE_VERSION:
            raise ServingError(
                "bad_reply",
                f"{self.url} speaks version {wire} of the format, this client {WIRE_VERSION}; install the same version "
                "of zoomiqa-reward on both sides",
            )
        try:
            low, high = self.info["score_range"]
            self.score_range = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
            self.name = str(self.info["name"])
            self.fingerprint = str(self.info["fingerprint_batched" if self.batched else "fingerprint"])
            self.deterministic = bool(self.info["deterministic"])
            self.needs = frozenset(self.info["needs"])
            self.labels = frozenset(map(str, self.info["labels"]))
            self._max_body_bytes = int(self.info["limits"]["max_body_bytes"])
            self._max_pixels = int(self.info["limits"]["max_pixels"])
            self._chunk = min(CHUNK_IMAGES, int(self.info["limits"]["max_images"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(
                "bad_reply", f"{self.url}/info does not come from a reward server ({error!r})"
            ) from error

    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Scores:  # fmt: skip
        """Return the scores in order on the CPU. `info["kinds"]` holds the kind of each error.

        Raises FingerprintError if the model of the server has changed, ServingError if the token is refused, and
        ValueError if a needed input is missing or too short. Any other failure belongs to one image: NaN with a reason.
        """
        sources = split_images(images)
        given = needed_inputs(self, len(sources), lq=lq, hr=hr, prompts=prompts)
        starts = range(0, len(sources), self._chunk)

        def answer(start: int) -> list[ScoreRow]:
            places = range(start, min(start + self._chunk, len(sources)))
            return self._answer([(sources[k], {key: items[k] for key, items in given.items()}) for k in places])

        with ThreadPoolExecutor(self._workers) as pool:
            rows = [row for chunk in pool.map(answer, starts) for row in chunk]
        return Scores(
            value=torch.tensor([row.value for row in rows], dtype=torch.float32),
            std=torch.tensor([row.std for row in rows], dtype=torch.float32),
            valid=torch.tensor([row.valid for row in rows], dtype=torch.bool),
            errors=tuple(f"{row.error['type']}: {row.error['message']}" if row.error else None for row in rows),
            info={"kinds": [row.error and row.error["type"] for row in rows]},
        )

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def __enter__(self) -> "RemoteReward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, sources: Sequence[tuple[ImageSource, dict[str, Any]]]) -> list[ScoreRow]:
        """Return one row per source; sources that cannot be read here are not sent."""
        rows: dict[int, ScoreRow] = {}
        items: dict[int, ScoreItem] = {}
        for index, (source, given) in enumerate(sources):
            try:
                item = self._item(source, given)
            except ImageError as error:
                rows[index] = ScoreRow.failed("unreadable_image", str(error))
                continue
            if (reason := self._too_large(item)) is not None:
                rows[index] = ScoreRow.failed("too_large", reason)
            else:
                items[index] = item
        for places in self._requests(items):
            rows.update(self._send({index: items[index] for index in places}))
        return [rows[index] for index in range(len(sources))]

    def _item(self, source: ImageSource, given: dict[str, Any]) -> ScoreItem:
        images = {key: encode_image(given[key], self.transport) for key in ("lq", "hr") if key in given}
        prompt = str(given["prompts"]) if "prompts" in given else None
        return ScoreItem(image=encode_image(source, self.transport), prompt=prompt, **images)

    def _too_large(self, item: ScoreItem) -> str | None:
        """Return why the server would refuse the item, or None: sent, it would fail the whole request."""
        if _size(item) > self._max_body_bytes:
            return f"{_size(item)} bytes; the server takes {self._max_body_bytes}"
        if _header_size(item) > MAX_HEADER_BYTES:
            return f"a prompt of {len(item.prompt or '')} characters; a request's texts take {MAX_HEADER_BYTES} bytes"
        return oversize(item, self._max_pixels)

    def _requests(self, items: dict[int, ScoreItem]) -> Iterator[list[int]]:
        """Yield the indices of one request after another, each within the byte limits of the server."""
        places: list[int] = []
        held = header = 0
        for index, item in items.items():
            if places and (held + _size(item) > self._max_body_bytes or header + _header_size(item) > MAX_HEADER_BYTES):
                yield places
                places, held, header = [], 0, 0
            places.append(index)
            held += _size(item)
            header += _header_size(item)
        if places:
            yield places

    def _send(self, items: dict[int, ScoreItem]) -> dict[int, ScoreRow]:
        """Return the rows of one request; images with a temporary failure are sent again."""
        rows: dict[int, ScoreRow] = {}
        for attempt in range(self._attempts):
            waiting = [index for index in items if index not in rows or _may_be_retried(rows[index])]
            if not waiting:
                break
            if attempt:
                time.sleep(_wait_s(attempt, None))
            try:
                results = self._retried(lambda: self._post([items[index] for index in waiting]))  # noqa: B023
            except ServingError as error:
                if error.kind in _STOPS:
                    raise
                results = [ScoreRow(error=error.as_json())] * len(waiting)
                rows.update(zip(waiting, results, strict=True))
                break
            rows.update(zip(waiting, results, strict=True))
        return rows

    def _post(self, items: Sequence[ScoreItem]) -> list[ScoreRow]:
        path = "/score?batched=1" if self.batched else "/score"
        headers = {"Content-Type": SAFETENSORS_TYPE, "Zoomiqa-Fingerprint": self.fingerprint}
        reply = self._connections.ask("POST", path, encode_request(items), headers)
        if reply.get("fingerprint") != self.fingerprint:
            raise FingerprintError(f"{self.url} answered with {reply.get('fingerprint')}, expected {self.fingerprint}")
        entries = reply.get("images")
        if not isinstance(entries, list) or len(entries) != len(items):
            raise ServingError("bad_reply", f"{len(items)} images were sent, but the number of answers differs")
        return [ScoreRow.from_json(fields) for fields in entries]

    def _retried(self, ask: Any) -> Any:
        """Return the result of ask(); a request with a temporary failure is repeated, `attempts` times in all."""
        for attempt in range(1, self._attempts + 1):
            try:
                return ask()
            except ServingError as error:
                if error.kind == "fingerprint_mismatch":
                    raise FingerprintError(f"{self.url}: {error.message}") from error
                if not error.retryable or attempt == self._attempts:
                    raise
                time.sleep(_wait_s(attempt, error.retry_after_s))
        raise AssertionError("attempts is at least 1")


def _size(item: ScoreItem) -> int:
    return sum(len(image.data) for image in item.images.values()) + _header_size(item)


def _header_size(item: ScoreItem) -> int:
    prompt = len(item.prompt.encode()) * 6 if item.prompt else 0  # JSON writes a character in at most 6 bytes
    return prompt + _HEADER_BYTES


def _may_be_retried(row: ScoreRow) -> bool:
    return row.error is not None and bool(row.error["retryable"])


def _wait_s(attempt: int, asked_s: float | None) -> float:
    """Return the waiting time: it doubles, with a random part so that clients do not return all at once."""
    longest = min(_LONGEST_WAIT_S, max(_FIRST_WAIT_S * 2**attempt, asked_s or 0.0))
    return float(longest * _JITTER.uniform(0.5, 1.0))
