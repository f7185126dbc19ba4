"""Questions to an OpenAI-compatible endpoint: each is asked once, and its answer is on the disk before it is used.

The `openai` client retries by itself, with exponential back-off and the server's Retry-After. A call has a name and a
hash of its request; a run that goes on after a kill finds the answers that it paid for and repeats none of them.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from train_iqa.curation.prompts import Messages
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.text_server.client import CONTINUE_FIELDS, joined
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.json_lines import append_line, as_float, read_lines
from zoomiqa_reward.runs.progress import say
from zoomiqa_reward.serving.connection import bearer_token, is_loopback

NO_KEY = "no key is set"
"""Sent where the endpoint has an address of its own and no key: local servers take any."""


class EndpointError(ZoomIQAError, RuntimeError):
    """An endpoint that did not answer this call; the image is tried again by the next run."""


class FatalEndpointError(EndpointError):
    """An endpoint that will not answer any call: wrong key, model or address."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Whom to ask, and how."""

    model: str
    base_url: str | None = None
    """For instance `http://localhost:8000/v1`; None: the variable OPENAI_BASE_URL, or OpenAI itself."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself stands in no file."""
    temperature: float = 0.7
    max_tokens: int = 1024
    """Of one answer."""
    top_logprobs: int = 0
    """Asked for with each token, for the entropy; 0: not asked for. OpenAI allows 20 at most."""
    json_mode: bool = False
    """Asks for a JSON object; of use for judges, where the server can."""
    max_retries: int = 6
    """Of the client, with exponential back-off; after them the call has failed."""
    timeout_s: float = 180.0
    price_in: float | None = None
    """Money for a million tokens of prompts; None: unknown, and no sum is given."""
    price_out: float | None = None
    """Money for a million tokens of answers."""

    def __post_init__(self) -> None:
        if (
            not 0 <= self.temperature < math.inf
            or self.max_tokens < 1
            or not 0 <= self.top_logprobs <= 20
            or self.max_retries < 0
        ):
            raise ValueError(
                f"endpoint {self.model}: temperature={self.temperature} must be at least 0, max_tokens="
                f"{self.max_tokens} at least 1, top_logprobs={self.top_logprobs} in 0..20, max_retries="
                f"{self.max_retries} at least 0"
            )
        if not all(price is None or 0 <= price < math.inf for price in (self.price_in, self.price_out)):
            raise ValueError(f"endpoint {self.model}: prices {self.price_in} and {self.price_out} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class EndpointReply:
    """One answer."""

    text: str
    is_cut: bool
    """It ended at `max_tokens`."""
    entropy: float
    """Mean over the tokens of `<answer>`, nats; NaN without log-probabilities."""


class Calls:
    """The journal of all answers of a run, one line each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = read_lines(file)
        self._known = {(row["call"], row["request"]): row for row in self.rows}

    def find(self, call: str, request: str) -> dict[str, Any] | None:
        """Return the line of a call, None if it was not answered yet."""
        return self._known.get((call, request))

    def add(self, row: dict[str, Any]) -> None:
        """Write a line; it is on the disk when this returns."""
        append_line(self.file, row)
        self.rows.append(row)
        self._known[row["call"], row["request"]] = row


class Asker:
    """Asks one endpoint in one role."""

    def __init__(self, endpoint: Endpoint, role: str, calls: Calls) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

        self.endpoint, self.role, self.calls = endpoint, role, calls
        self._refuses_start = False
        key = os.environ.get(endpoint.key_variable)
        has_address = endpoint.base_url is not None or "OPENAI_BASE_URL" in os.environ
        if key is None and not has_address:
            raise FatalEndpointError(
                f"{role}: set {endpoint.key_variable}, or give the address of a server without key"
            )
        address = endpoint.base_url or os.environ.get("OPENAI_BASE_URL", "")
        is_here = is_loopback(urlsplit(address).hostname or "")
        try:
            self._client = AsyncOpenAI(
                base_url=endpoint.base_url, api_key=bearer_token(key or "") or NO_KEY,
                max_retries=endpoint.max_retries, timeout=endpoint.timeout_s,
                http_client=DefaultAsyncHttpxClient(trust_env=False) if is_here else None,
            )  # fmt: skip
        except ValueError as error:
            raise FatalEndpointError(f"{role}: {endpoint.key_variable}: {error}") from error
        except OpenAIError as error:
            raise FatalEndpointError(f"{role}: {error}") from error

    async def ask(self, call: str, messages: Messages, *, seed: int, start: str = "") -> EndpointReply:
        """Return the answer of a call, from the journal if it is there.

        start: what the answer begins with, and the reply too. A server that cannot continue an answer is asked without
        it, from then on, and a line says so.
        Raises FatalEndpointError where no call can succeed, EndpointError where this one failed after all retries.
        """
        body = self._body(messages, seed)
        request = digest(json.dumps(body, sort_keys=True) + start, size=24)
        row = self.calls.find(call, request)
        if row is None:
            row = {"call": call, "request": request, "role": self.role, **await self._begun_answer(body, start)}
            self.calls.add(row)
        return EndpointReply(text=row["text"], is_cut=row["is_cut"], entropy=as_float(row["entropy"]))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _body(self, messages: Messages, seed: int) -> dict[str, Any]:
        endpoint = self.endpoint
        body: dict[str, Any] = {
            "model": endpoint.model, "messages": messages, "temperature": endpoint.temperature,
            "max_completion_tokens": endpoint.max_tokens, "seed": seed,
        }  # fmt: skip
        if endpoint.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
        if endpoint.json_mode:
            body["response_format"] = {"type": "json_object"}
        return body

    async def _begun_answer(self, body: dict[str, Any], start: str) -> dict[str, Any]:
        if not start or self._refuses_start:
            return await self._answer(body)
        begun = [*body["messages"], {"role": "assistant", "content": start}]
        fields = dict(zip(CONTINUE_FIELDS, (True, False), strict=True))
        try:
            answer = await self._answer(body | {"messages": begun, "extra_body": fields})
        except EndpointError as error:
            reply = getattr(error.__cause__, "response", None)
            if reply is None or not any(field in reply.text for field in CONTINUE_FIELDS):
                raise
            self._refuses_start = True
            say(
                f"{self.endpoint.model}'s server cannot continue an answer that has begun: it is asked without the "
                "start and may answer in another form; vLLM can"
            )
            return await self._answer(body)
        return answer | {"text": joined(start, answer["text"])}

    async def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        import openai

        began = time.monotonic()
        fatal = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        try:
            completion = await self._client.chat.completions.create(**body)
        except fatal as error:
            raise FatalEndpointError(f"{self.role} {self.endpoint.model}: {_first_line(error)}") from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: no JSON
            raise EndpointError(f"{self.role} {self.endpoint.model}: {_first_line(error)}") from error
        try:
            return _read(completion) | {"seconds": round(time.monotonic() - began, 3)}
        except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
            what = f"an answer that is no chat completion, {str(completion)[:200]!r}; is the address right, up to /v1?"
            raise EndpointError(f"{self.role} {self.endpoint.model}: {what}") from error


def _read(completion: Any) -> dict[str, Any]:
    """Return what the journal keeps of a completion; raises what Python raises where it is none.

    The client checks nothing, and a line of the journal is read again by every later run.
    """
    choice, usage = completion.choices[0], completion.usage
    counts = {
        "tokens_in": getattr(usage, "prompt_tokens", None),
        "tokens_out": getattr(usage, "completion_tokens", None),
    }
    return {
        "text": _text(choice.message),
        "is_cut": choice.finish_reason == "length",
        "entropy": answer_entropy(choice.logprobs),
        **{name: count if type(count) is int and count >= 0 else None for name, count in counts.items()},
    }


def answer_entropy(logprobs: Any) -> float | None:
    """Return the mean entropy of the tokens after `<answer>`, in nats; None where the endpoint gave none.

    An endpoint names only its likeliest tokens: the rest counts as one, so this is a lower bound.
    """
    tokens = list(getattr(logprobs, "content", None) or ())
    text, entropies = "", []
    for token in tokens:
        if "<answer>" in text and token.top_logprobs:
            shares = [math.exp(alternative.logprob) for alternative in token.top_logprobs]
            rest = max(0.0, 1.0 - sum(shares))
            entropies.append(-sum(share * math.log(share) for share in (*shares, rest) if share > 0))
        text += token.token
    return sum(entropies) / len(entropies) if entropies else None


def _text(message: Any) -> str:
    """Return what was said; some servers cut `<think>` out of the text and give it apart. Half a character is a `?`."""
    content = message.content or ""
    apart = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if apart and "<think>" not in content and "<answer>" in content:
        content = f"<think>\n{apart}\n</think>\n{content}"
    return str(content.encode(errors="replace"), "utf-8")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
