"""What the reward service refuses and cuts off, each with a type, while it goes on serving others."""

import contextlib
import pickle
import socket
import time

import pytest
from in_process_server import LIMITS, TOKEN, gateway, kind_of, nano_in_process, one_body, raw, reply, request

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def url():
    with nano_in_process() as backend, gateway(backend) as url:
        yield url


REFUSED = {
    "no token": (request(one_body(), token=None), 401, "unauthorized"),
    "wrong token": (request(one_body(), token=TOKEN + "x"), 401, "unauthorized"),
    "info without token": (request(path="/info", method="GET", token=None), 401, "unauthorized"),
    "too many bytes": (request(b"x" * 1000, length=200_001), 413, "too_large"),
    "too many images": (request(one_body(7)), 413, "too_large"),
    "no length": (request(length="none", extra="Transfer-Encoding: chunked\r\n"), 411, "length_required"),
    "a length beside chunks": (
        request(b"5\r\nhello\r\n0\r\n\r\n", length=5, extra="Transfer-Encoding: chunked\r\n"),
        411,
        "length_required",
    ),
    "pickle": (request(pickle.dumps({}), kind="application/octet-stream"), 415, "unsupported_media_type"),
    "pickle by name": (request(pickle.dumps({}), kind="application/python-pickle"), 415, "unsupported_media_type"),
    "pickle in disguise": (request(pickle.dumps([1] * 99)), 400, "malformed"),
    "jpeg": (request(b"\xff\xd8", kind="image/jpeg"), 415, "unsupported_media_type"),
    "no type": (request(one_body(), kind=None), 415, "unsupported_media_type"),
    "another model": (request(one_body(), extra="Zoomiqa-Fingerprint: 0123\r\n"), 412, "fingerprint_mismatch"),
    "another path": (request(path="/admin"), 404, "not_found"),
    "another method": (request(method="GET", path="/score"), 405, "method_not_allowed"),
    "another option": (request(one_body(), path="/score?batched=yes"), 400, "malformed"),
    "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400, "malformed"),
    "a huge head": (b"GET /info HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, 400, "malformed"),
}


@pytest.mark.parametrize(("data", "status", "kind"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_type_and_the_server_lives_on(url, data, status, kind):
    found, seconds = raw(url, data)
    assert kind_of(found) == (status, kind)
    assert seconds < 2.5
    assert "connection: close" in found.decode().lower()
    assert reply(raw(url, request(method="GET", path="/health", token=None))[0])[:2] == (
        200, {"status": "ok", "replicas": 1},
    )  # fmt: skip


SLOW = {
    "says nothing": b"",
    "half a head": b"POST /score HTTP/1.1\r\nHost: a\r\n",
    "half a body": request(one_body()[:-9], length=len(one_body())),
    "a body that a refusal does not wait for": request(b"", token=None, length=150_000),
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_slow_clients_are_cut_off(url, data):
    found, seconds = raw(url, data)
    assert seconds < 2.5
    if b"HTTP/1.1\r\nHost: a\r\n" in data or not data:
        assert found == b""
    else:
        assert kind_of(found) in ((408, "read_timeout"), (401, "unauthorized"))


def test_byte_by_byte_is_cut_off_too(url):
    """A byte every 50 ms, first of a head, then of a body that nobody asked for."""
    host, port = url.removeprefix("http://").split(":")
    for start in (b"", b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"):
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=5) as one:
            one.sendall(start)
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 4:
                    one.sendall(b"G")
                    time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_many_connections_do_not_shut_others_out_for_long(url):
    host, port = url.removeprefix("http://").split(":")
    crowd = [socket.create_connection((host, int(port))) for _ in range(30)]
    try:
        time.sleep(LIMITS.read_timeout_s + 0.5)
        assert kind_of(raw(url, request(path="/admin"))[0]) == (404, "not_found")
    finally:
        for one in crowd:
            one.close()
