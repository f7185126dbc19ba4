"""A gateway on a real socket over a scorer in this process, and requests to it byte by byte."""

import contextlib
import json
import socket
import time

import pytest
import torch
from tiny import make_image

from zoomiqa_reward.serving import Limits, RewardSpec, ServingError
from zoomiqa_reward.serving.errors import KINDS
from zoomiqa_reward.serving.scorer import Scorer
from zoomiqa_reward.serving.wire import SAFETENSORS_TYPE, ScoreItem, encode_image, encode_request

TOKEN = "a-token-for-tests-only"
OTHER = "b-token-for-tests-only"
LIMITS = Limits(
    max_body_bytes=200_000, max_images=6, max_pixels=40_000, max_held_bytes=400_000, max_pending_images=12,
    max_connections=12, read_timeout_s=0.6, keep_alive_s=0.6, compute_timeout_s=20.0,
)  # fmt: skip


def square(seed, side=56):
    return make_image(seed, side, side)


class InProcess:
    """A backend without Ray: a real scorer in this process."""

    def __init__(self, spec):
        self.scorer = Scorer(spec, threads=1)
        self.count = 1
        self.failures = []

    async def score(self, item, *, batched):
        if self.failures and (kind := self.failures.pop(0)):
            raise ServingError(kind, "as the test wanted")
        return (await self.scorer.score([item], batched=batched))[0]

    async def running(self):
        return self.count


@contextlib.contextmanager
def nano_in_process():
    """The backend that serves nano; the scorer's number of threads, which is the process', is put back."""
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    before = torch.get_num_threads()
    yield InProcess(RewardSpec())
    torch.set_num_threads(before)


@contextlib.contextmanager
def gateway(backend, **options):
    from zoomiqa_reward.serving.gateway import Gateway
    from zoomiqa_reward.serving.server import _listen, run_gateway

    options = {"tokens": (TOKEN, OTHER), "limits": LIMITS} | options
    listener = _listen("127.0.0.1", 0)
    stop = run_gateway(Gateway(backend, backend.scorer.describe(), **options), listener)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop()
        listener.close()


def raw(url, data, wait_s=5.0):
    """Send bytes, return all that comes back until the server closes, and how long that took."""
    host, port = url.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=wait_s) as one, contextlib.suppress(ConnectionError):
        one.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := one.recv(65536):
                found += part
    return found, time.monotonic() - began


def request(body=b"", *, kind=SAFETENSORS_TYPE, token=TOKEN, path="/score", method="POST", length=None, extra=""):
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"Content-Length: {len(body) if length is None else length}"] if length != "none" else []
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode() + body


def reply(data):
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), head.decode().lower()


def kind_of(data):
    status, body, _ = reply(data)
    assert KINDS[body["error"]["type"]].status == status
    assert KINDS[body["error"]["type"]].retryable == body["error"]["retryable"]
    return status, body["error"]["type"]


def one_body(count=1):
    return encode_request([ScoreItem(image=encode_image(square(k))) for k in range(count)])
