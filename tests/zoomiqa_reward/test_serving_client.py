"""The client of the reward service against servers that are wrong, slow or cut off, and against wrong arguments."""

import contextlib
import json
import math
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from zoomiqa_reward.serving import RemoteReward, ServingError
from zoomiqa_reward.serving.connection import bearer_token

INFO = {
    "wire": 1, "name": "half", "score_range": [0, 1], "deterministic": True, "needs": [], "labels": [],
    "fingerprint": "f", "fingerprint_batched": "fb",
    "limits": {"max_body_bytes": 1 << 20, "max_pixels": 10_000, "max_images": 4},
}  # fmt: skip
SCORES = {"fingerprint": "f", "images": [{"value": 0.5, "std": None, "valid": True, "error": None}]}


@contextlib.contextmanager
def scripted(*answers, info=INFO):
    """The URL of a server whose n-th score is answers[n] (handler -> None), the last one for ever; and its requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            send(self, 200, info)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(dict(self.headers))
            answers[min(len(asked), len(answers)) - 1](self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()


def send(handler, status, document, length=None):
    data = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(length or len(data)))
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client has gone
        handler.wfile.write(data)


def right(handler):
    send(handler, 200, SCORES)


def cut_off(handler):
    send(handler, 200, SCORES, length=1000)
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def late(handler):
    time.sleep(0.8)
    handler.close_connection = True


def limited(handler):
    send(handler, 429, "too many requests")


def ask(url, **options):
    with RemoteReward(url, token="", **options) as remote:
        return remote(torch.rand(1, 3, 8, 8))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("zoomiqa_reward.serving.remote._FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("fault", [cut_off, limited])
def test_what_a_network_does_for_a_moment_costs_no_image(fault):
    with scripted(fault, fault, right) as (url, asked):
        assert ask(url).value.tolist() == [0.5]
    assert len(asked) == 3
    with scripted(fault) as (url, asked):
        scores = ask(url, attempts=2)
    assert scores.info["kinds"] == ["unavailable"]
    assert math.isnan(scores.value[0])


def test_a_server_that_is_late_is_waited_for_once_per_attempt():
    with scripted(late) as (url, asked):
        scores = ask(url, attempts=1, timeout_s=0.2)
    assert scores.info["kinds"] == ["unavailable"]
    assert len(asked) == 1  # on the connection of /info; no second one was opened for it


def test_a_server_of_another_version_is_named():
    with scripted(right, info=INFO | {"wire": 2}) as (url, _), pytest.raises(ServingError, match="speaks version 2"):
        RemoteReward(url, token="")


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "http://a:99999", "http://a:8765 ", "http://a b:1", "ftp://a"])
def test_what_is_no_address_is_named(url):
    with pytest.raises(ValueError, match=r"url='.*must be like http://host:port"):
        RemoteReward(url, token="")


def test_a_token_is_read_as_its_file_holds_it_and_shown_in_no_message():
    with scripted(right) as (url, asked), RemoteReward(url, token="a-secret-word\n") as remote:
        assert remote(torch.rand(1, 3, 8, 8)).valid.all()
    assert asked[0]["Authorization"] == "Bearer a-secret-word"
    for token in ("a-sécret-word", "a-secret\n-word", "a-secret\x00"):
        with pytest.raises(ValueError, match="ASCII in one line") as caught:
            bearer_token(token)
        assert "word" not in str(caught.value)
