"""One OpenAI-compatible text server: requests with images, several at once, retries, time limits and clear errors.

The `openai` client does the HTTP: it retries connection errors, time-outs and the statuses 408, 409, 429 and 5xx with
a growing, jittered pause, or the pause that the server asks for. Source: openai-python's README, "Retries".

The results of several requests at once are in the order of the requests.
"""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypedDict, TypeVar
from urllib.parse import urlsplit

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.text_server.replies import ReplyError, ServerReply, read_reply
from zoomiqa_reward.serving.connection import bearer_token, is_loopback

THINK_JOIN = ("<think>\n", "\n</think>\n")
CONTINUE_FIELDS = ("continue_final_message", "add_generation_prompt")
"""vLLM's fields for a reply that continues the last, assistant's, message. Source: vLLM's OpenAI server reference."""


class ServerError(ZoomIQAError, RuntimeError):
    """A text server did not do what was asked; the message names it."""


class RequestFailed(ServerError):
    """This request failed, after its retries; another one may not. An image's rating is then NaN."""


class ServerRefused(ServerError):
    """Every request would fail like this one: wrong key, model name or address."""


class NotOffered(ServerError):
    """This server cannot do that: it takes no start of an answer, or tells no log-probabilities."""


class ServerOptions(TypedDict, total=False):
    """How a server is asked, beside address, model and key; see `TextServer`."""

    timeout_s: float
    max_retries: int
    top_logprobs: int
    think_join: tuple[str, str]
    extra: Mapping[str, object] | None


class TextServer:
    """An OpenAI-compatible server and one of its models. Safe to use from several threads. Nothing is sent yet."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        max_retries: int = 4,
        top_logprobs: int = 20,
        think_join: tuple[str, str] = THINK_JOIN,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Take down how to ask.

        base_url: up to and with `/v1`. model: as the server calls it. api_key: sent as bearer token; OPENAI_API_KEY
        is not read. timeout_s: of one try; a request takes at most (1 + max_retries) times that and the pauses.
        top_logprobs: alternatives asked for at every token, 0 for none; many servers allow at most 20.
        think_join: see `replies.read_reply`. extra: more fields for every request's JSON, as `{"top_k": 50}` for vLLM.
        Raises ValueError.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url={base_url!r}: must be an http(s) address such as http://localhost:8000/v1")
        if not timeout_s > 0 or max_retries < 0 or top_logprobs < 0:
            raise ValueError(
                f"timeout_s={timeout_s} must be above 0, max_retries={max_retries} and "
                f"top_logprobs={top_logprobs} at least 0"
            )
        port = f":{parts.port}" if parts.port else ""
        self.address = f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
        """Without user and password, for messages and fingerprints."""
        self.model = model
        self.timeout_s, self.max_retries, self.top_logprobs = timeout_s, max_retries, top_logprobs
        self.think_join, self.extra = think_join, dict(extra or {})
        self._base_url, self._api_key = base_url, api_key and bearer_token(api_key)
        self._refuses_logprobs = self._refuses_top_k = self._refuses_start = False
        self._client: Any = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"TextServer({self.address!r}, {self.model!r})"

    def _connect(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise ImportError("a text server needs the openai client: pip install 'zoomiqa-reward[serve]'") from error
        with self._lock:
            if self._client is None:
                is_here = is_loopback(urlsplit(self._base_url).hostname or "")
                self._client = openai.OpenAI(
                    base_url=self._base_url, api_key=self._api_key or "none", timeout=self.timeout_s,
                    max_retries=self.max_retries,
                    http_client=openai.DefaultHttpxClient(trust_env=False) if is_here else None,
                )  # fmt: skip
            return self._client

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        start: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> ServerReply:
        """Return the answer to a conversation; with log-probabilities where they are wanted and offered.

        start: text that the answer begins with; the reply holds it. A server that cannot continue an answer is asked
        without it, from then on and with a warning.
        top_k: likeliest tokens that are drawn from, 0 for all; a field beside OpenAI's own that vLLM and others take.
        A server that refuses the fields of log-probabilities, or top_k, is asked again without them, and from then on;
        for top_k with a warning, since its samples then come from more tokens than the protocol says.
        Raises RequestFailed, ServerRefused.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "frequency_penalty": 0.0,  # `transformers serve` turns it into repetition_penalty = 1, as decoding here is
        }
        if temperature > 0:
            body |= {"top_p": top_p} | ({} if seed is None else {"seed": seed})
        while True:
            wants_logprobs = bool(self.top_logprobs) and not self._refuses_logprobs
            wants_top_k = temperature > 0 and top_k > 0 and not self._refuses_top_k and "top_k" not in self.extra
            logprobs = {"logprobs": True, "top_logprobs": self.top_logprobs} if wants_logprobs else {}
            wants_start = bool(start) and not self._refuses_start
            begun = {"messages": [*messages, {"role": "assistant", "content": start}]} if wants_start else {}
            more: dict[str, Any] = {"top_k": top_k} if wants_top_k else {}
            more |= dict(zip(CONTINUE_FIELDS, (True, False), strict=True)) if wants_start else {}
            try:
                reply = self._post(body | begun | logprobs, more)
                return replace(reply, text=joined(start, reply.text)) if wants_start else reply
            except RequestFailed as error:
                if wants_start and _is_about(error, CONTINUE_FIELDS):
                    self._refuses_start = True
                    warnings.warn(
                        f"{self.address} cannot continue an answer that has begun: it is asked without the start",
                        stacklevel=2,
                    )
                elif wants_top_k and _is_about(error, ("top_k",)):
                    self._refuses_top_k = True
                    warnings.warn(
                        f"{self.address} takes no top_k: it samples from all tokens, not {top_k}", stacklevel=2
                    )
                elif wants_logprobs and _is_about(error, ("logprobs",)):
                    self._refuses_logprobs = True
                else:
                    raise

    def continue_answer(self, messages: Sequence[Mapping[str, Any]], start: str, *, max_tokens: int) -> ServerReply:
        """Return how the model goes on, greedily, after the assistant's answer has begun with `start`.

        Raises NotOffered where the server cannot continue an answer or tells no log-probabilities; RequestFailed,
        ServerRefused.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*messages, {"role": "assistant", "content": start}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": True,
            "top_logprobs": self.top_logprobs or 20,
        }
        what = "mode='direct' over a server needs one that continues an assistant's message and tells log-probabilities"
        way_out = "use vLLM, mode='reason', or load the model itself"
        try:
            reply = self._post(body, dict(zip(CONTINUE_FIELDS, (True, False), strict=True)))
        except RequestFailed as error:
            if not _is_about(error, (*CONTINUE_FIELDS, "logprobs")):
                raise
            raise NotOffered(f"{what}: {error}; {way_out}") from error
        if reply.tokens is None:
            raise NotOffered(f"{what}: {self.address} sent none for model {self.model!r}; {way_out}")
        return reply

    def _post(self, body: dict[str, Any], more: Mapping[str, Any] | None = None) -> ServerReply:
        completions = self._connect().chat.completions
        import openai

        where = f"{self.address}, model {self.model!r}"
        try:
            raw = completions.with_raw_response.create(**body, extra_body=self.extra | dict(more or {}))
        except openai.APITimeoutError as error:
            tries = f"{1 + self.max_retries} tries of {self.timeout_s:g} s"
            raise RequestFailed(f"{where}: no answer within {tries}; raise timeout_s or ask less at once") from error
        except openai.APIConnectionError as error:
            raise RequestFailed(f"{where}: cannot be reached ({error.__cause__ or error}); is it running?") from error
        except openai.APIStatusError as error:
            message = " ".join(error.response.text.split())[:300]
            if error.status_code in (401, 403, 404):
                what = "model name and address (up to /v1)" if error.status_code == 404 else "api_key"
                raise ServerRefused(f"{where}: status {error.status_code}, check {what}: {message}") from error
            raise RequestFailed(f"{where}: status {error.status_code}: {message}") from error
        try:
            return read_reply(raw.text, self.think_join)
        except ReplyError as error:
            raise RequestFailed(f"{where}: the reply {error}") from error


def joined(start: str, text: str) -> str:
    """Return an answer that began with `start`; a server that wrote the whole answer anew has begun it itself.

    >>> joined("<think>\\nSummary:", " soft.</think>"), joined("<think>\\nSummary:", "<think>Soft.</think>")
    ('<think>\\nSummary: soft.</think>', '<think>Soft.</think>')
    """
    first_word = start.split(maxsplit=1)[:1]
    return text if first_word and text.lstrip().startswith(first_word[0]) else start + text


def _is_about(error: RequestFailed, fields: Sequence[str]) -> bool:
    """Whether a status 400 or 422 names one of these fields: the server does not know or not allow it."""
    status = getattr(error.__cause__, "status_code", None)
    return status in (400, 422) and any(field in str(error) for field in fields)


T = TypeVar("T")
R = TypeVar("R")


def parallel_map(ask: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Return ask(item) for each, in order, `workers` at once; items are drawn as they are needed.

    The first exception, in the order of the items, is raised; what has not begun by then is not begun.
    """
    waiting: deque[Future[R]] = deque()
    results: list[R] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(ask, item))
                if len(waiting) >= 2 * workers:
                    results.append(waiting.popleft().result())
            while waiting:
                results.append(waiting.popleft().result())
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return results
