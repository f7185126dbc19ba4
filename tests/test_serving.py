"""The reward service without Ray: the format, the gateway on a real socket, and the client.

Replicas, their death and batching across requests are in test_serving_ray.py.
"""

import contextlib
import io
import json
import math
import pickle
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.numpy import save
from tiny import picture

from zoomiqa_reward import MetricReward, Reward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import ImageError, load_image
from zoomiqa_reward.serving import FingerprintError, Limits, RemoteReward, RewardSpec, ServeConfig, ServingError
from zoomiqa_reward.serving.errors import KINDS
from zoomiqa_reward.serving.scorer import Answer, Scorer
from zoomiqa_reward.serving.wire import (
    SAFETENSORS_TYPE,
    Item,
    Picture,
    Row,
    decode_request,
    encode_picture,
    encode_request,
)

TOKEN = "a-token-for-tests-only"
OTHER = "b-token-for-tests-only"
LIMITS = Limits(
    max_body_bytes=200_000, max_images=6, max_pixels=40_000, max_held_bytes=400_000, max_pending_images=12,
    max_connections=12, read_timeout_s=0.6, keep_alive_s=0.6, compute_timeout_s=20.0,
)  # fmt: skip


def square(seed, side=56):
    return picture(seed, side, side)


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


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    before = torch.get_num_threads()
    yield InProcess(RewardSpec())
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def url(backend):
    with gateway(backend) as url:
        yield url


@pytest.fixture
def local(nano):
    torch.set_num_threads(1)
    return ZoomIQAReward(ZoomIQA.from_pretrained("nano"))


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
    return encode_request([Item(image=encode_picture(square(k))) for k in range(count)])


# -- the format --


@pytest.mark.parametrize("transport", ["auto", "png", "float"])
def test_eight_bit_pixels_travel_bit_for_bit(transport, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sent = encode_picture(tmp_path / "a.png", transport)
    assert (sent.shape is None) == (transport != "float")
    [item] = decode_request(encode_request([Item(image=sent)]), SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), load_image(pixels))
    assert item.image.size() == (53, 37)


def test_floats_travel_bit_for_bit_and_never_as_png():
    image = torch.rand(3, 41, 29)
    [item] = decode_request(encode_request([Item(image=encode_picture(image))]), SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), image)
    with pytest.raises(ImageError, match="do not hold these pixels"):
        encode_picture(image, "png")


def test_lq_hr_and_prompts_stay_with_their_image():
    items = [
        Item(image=encode_picture(square(k)), lq=encode_picture(square(10 + k, 28)), hr=encode_picture(square(20 + k)),
             prompt=f"té {k}")
        for k in range(3)
    ]  # fmt: skip
    assert decode_request(encode_request(items), SAFETENSORS_TYPE, Limits()) == items


def test_a_client_in_another_language_needs_three_lines():
    values = np.linspace(0, 1, 3 * 4 * 5, dtype="<f4").reshape(3, 4, 5)
    header = json.dumps({"0": {"dtype": "F32", "shape": [3, 4, 5], "data_offsets": [0, values.nbytes]}}).encode()
    body = struct.pack("<Q", len(header)) + header + values.tobytes()
    [item] = decode_request(body, SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), torch.from_numpy(values))


@pytest.mark.parametrize("number", [1.0, 3.1415927, 4.9999995, 1.1754944e-38])
def test_numbers_survive_the_reply_bit_for_bit(number):
    value = torch.tensor(number, dtype=torch.float32)
    fields = json.loads(json.dumps(Row(value=value.item(), std=0.1, valid=True).as_json()))
    assert torch.equal(torch.tensor(Row.from_json(fields).value, dtype=torch.float32), value)


def test_what_failed_is_nan_on_the_other_side():
    row = Row.from_json(json.loads(json.dumps(Row.failed("replica_died", "gone").as_json())))
    assert math.isnan(row.value)
    assert not row.valid
    assert row.error == {"type": "replica_died", "message": "gone", "retryable": True}
    for broken in ({}, None, {"value": None, "std": None, "valid": True, "error": None}, {"value": 3, "valid": False}):
        with pytest.raises(ServingError, match="bad_reply"):
            Row.from_json(broken)


def tensors(**named):
    return save({name.replace("_", "."): value for name, value in named.items()})


FLOATS = np.zeros((3, 8, 8), dtype=np.float32)
MALFORMED = {
    "nothing": b"",
    "pickle": pickle.dumps([1, 2, 3]),
    "a file of torch.save": b"PK\x03\x04" + bytes(60),
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "a deep header": struct.pack("<Q", 60000) + b"[" * 60000,
    "offsets beyond the end": struct.pack("<Q", 70)
    + b'{"0":{"dtype":"F32","shape":[3,9,9],"data_offsets":[0,972]}}'.ljust(70),
    "no tensor": save({}),
    "half precision": save({"0": FLOATS.astype(np.float16)}),
    "four channels": save({"0": np.zeros((4, 8, 8), dtype=np.float32)}),
    "no height": save({"0": np.zeros((3, 0, 8), dtype=np.float32)}),
    "a batch": save({"0": FLOATS[None]}),
    "a gap": save({"0": FLOATS, "2": FLOATS}),
    "a name": save({"image": FLOATS}),
    "an lq without its image": save({"0": FLOATS, "lq.1": FLOATS}),
    "a prompt without its image": save({"0": FLOATS}, metadata={"prompt.7": "x"}),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_breaks_the_format_is_refused(body):
    with pytest.raises(ServingError) as caught:
        decode_request(body, SAFETENSORS_TYPE, Limits())
    assert caught.value.kind == "malformed"


def test_too_much_is_refused_before_decoding():
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 50_000, 50_000)
    with pytest.raises(ServingError, match="50000x50000 pixels; at most"):
        decode_request(head, "image/png", Limits())
    with pytest.raises(ServingError, match="3 images; at most 2"):
        decode_request(one_body(3), SAFETENSORS_TYPE, Limits(max_images=2))


def test_only_png_is_decoded():
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16)).save(jpeg, format="JPEG")
    with pytest.raises(ImageError, match="JPEG and others would change the pixels"):
        Picture(data=jpeg.getvalue()).load()
    whole = encode_picture((square(0) * 255).round() / 255, "png")
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        Picture(data=whole.data[:60]).load()


@pytest.mark.parametrize(("field", "value"), [("max_images", 0), ("read_timeout_s", -1), ("max_held_bytes", 5)])
def test_limits_must_make_sense(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_a_server_that_can_be_reached_needs_a_token():
    with pytest.raises(ValueError, match="can be reached from outside"):
        ServeConfig(host="0.0.0.0")
    assert ServeConfig(host="0.0.0.0", tokens=(TOKEN,)).tokens == (TOKEN,)
    assert ServeConfig(host="::1").tokens == ()
    with pytest.raises(ValueError, match="a token of 5 characters") as caught:
        ServeConfig(tokens=("short",))
    assert "short" not in str(caught.value)


def test_model_options_belong_to_the_model():
    with pytest.raises(ValueError, match="mode='reason' belongs to reward='zoomiqa'"):
        RewardSpec(reward="niqe", mode="reason")


def test_the_client_imports_neither_ray_nor_the_server():
    code = "import sys, zoomiqa_reward.serving.remote; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"ray", "uvicorn", "starlette", "fastapi"} & set(loaded.split())
    assert "torch" in loaded.split()


# -- the gateway, over HTTP --


def test_remote_scores_equal_local_ones_bit_for_bit(url, local, tmp_path):
    eight_bit = (square(3, 70) * 255).round() / 255
    images = [square(0), square(1, 84), eight_bit, picture(4, 60, 112), "no-such-file.png"]
    with RemoteReward(url, token=TOKEN) as remote:
        assert isinstance(remote, Reward)
        assert (remote.name, remote.score_range, remote.deterministic) == (local.name, (1.0, 5.0), True)
        assert remote.fingerprint == local.fingerprint
        found, expected = remote(images), local(images)
    assert torch.equal(found.value.nan_to_num(-9), expected.value.nan_to_num(-9))
    assert torch.equal(found.std.nan_to_num(-9), expected.std.nan_to_num(-9))
    assert found.valid.tolist() == [True] * 4 + [False]
    assert found.value.dtype == torch.float32
    assert found.info["kinds"] == [None] * 4 + ["unreadable_image"]
    assert "no such file" in found.info["errors"][4]


def test_batched_is_another_fingerprint_and_within_tolerance(url, local):
    with RemoteReward(url, token=TOKEN, batched=True) as remote:
        assert remote.fingerprint != local.fingerprint
        found = remote([square(0), square(1)])
    assert torch.allclose(found.value, local([square(0), square(1)]).value, atol=1e-4, rtol=0)


def test_a_png_may_be_the_whole_body(url, local):
    image = (square(5) * 255).round() / 255
    status, body, _ = reply(raw(url, request(encode_picture(image).data, kind="image/png"))[0])
    assert status == 200
    assert body["fingerprint"] == local.fingerprint
    assert body["images"][0]["value"] == local(image).value.item()


def test_an_image_that_fails_leaves_the_others(url):
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, format="JPEG")
    bodies = [Picture(data=jpeg.getvalue()), Picture(data=np.full((3, 56, 56), np.nan, dtype="<f4").tobytes(),
              shape=(3, 56, 56)), encode_picture(square(0))]  # fmt: skip
    status, body, _ = reply(raw(url, request(encode_request([Item(image=one) for one in bodies])))[0])
    assert status == 200
    assert [one["valid"] for one in body["images"]] == [False, False, True]
    assert [one["value"] is None for one in body["images"]] == [True, True, False]
    assert {one["error"]["type"] for one in body["images"][:2]} == {"unreadable_image"}


REFUSED = {
    "no token": (request(one_body(), token=None), 401, "unauthorized"),
    "wrong token": (request(one_body(), token=TOKEN + "x"), 401, "unauthorized"),
    "info without token": (request(path="/info", method="GET", token=None), 401, "unauthorized"),
    "too many bytes": (request(b"x" * 1000, length=200_001), 413, "too_large"),
    "too many images": (request(one_body(7)), 413, "too_large"),
    "no length": (request(length="none", extra="Transfer-Encoding: chunked\r\n"), 411, "length_required"),
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


def test_the_second_token_is_known_too(url):
    status, info, head = reply(raw(url, request(method="GET", path="/info", token=OTHER))[0])
    assert status == 200
    assert info["limits"]["max_body_bytes"] == 200_000
    assert info["threads"] == 1
    assert "server:" not in head


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


def test_a_keep_alive_connection_serves_several_requests(url):
    with RemoteReward(url, token=TOKEN, connections=1) as remote:
        first = remote([square(0)])
        assert remote._connections._free.qsize() == 1
        time.sleep(LIMITS.keep_alive_s + 0.3)  # the server has closed it
        assert torch.equal(remote([square(0)]).value, first.value)


# -- the client --


def test_another_fingerprint_is_refused(url, local):
    with pytest.raises(FingerprintError, match=local.fingerprint):
        RemoteReward(url, token=TOKEN, fingerprint="0" * 16)
    with RemoteReward(url, token=TOKEN, fingerprint=local.fingerprint) as remote:
        remote.fingerprint = "0" * 16  # as if the server had been restarted with other weights
        with pytest.raises(FingerprintError, match=local.fingerprint):
            remote(square(0))


def test_a_replica_with_other_weights_is_no_answer(backend):
    class Other:
        scorer, running = backend.scorer, backend.running

        async def score(self, item, *, batched):
            answer = await backend.score(item, batched=batched)
            return Answer(row=answer.row, fingerprint="f" * 16)

    with gateway(Other(), tokens=()) as url, RemoteReward(url) as remote:
        found = remote(square(0))
    assert found.info["kinds"] == ["fingerprint_mismatch"]
    assert found.value.isnan().all()


def test_the_token_comes_from_the_environment_and_a_wrong_one_raises(url, monkeypatch):
    monkeypatch.setenv("ZOOMIQA_TOKEN", TOKEN)
    RemoteReward(url).close()
    with pytest.raises(ServingError, match="unauthorized"):
        RemoteReward(url, token="wrong")


def test_what_may_be_retried_is_and_only_that(backend):
    with gateway(backend, tokens=()) as url, RemoteReward(url) as remote:
        backend.failures = [None, "replica_died", None]
        found = remote([square(k) for k in range(3)])
        assert found.valid.all()
        assert backend.failures == []
        backend.failures = [None, "internal", None, "replica_died"]
        found = remote([square(k) for k in range(3)])
        assert found.valid.tolist() == [True, False, True]
        assert found.info["kinds"] == [None, "internal", None]
        assert backend.failures == ["replica_died"]  # nothing was asked again
        backend.failures = ["replica_died"] * 2
        with RemoteReward(url, attempts=2) as impatient:
            assert impatient(square(0)).info["kinds"] == ["replica_died"]
        assert backend.failures == []


def test_a_server_that_is_gone_gives_nan_not_an_exception(backend):
    with gateway(backend, tokens=()) as url:
        remote = RemoteReward(url, attempts=2)
    found = remote([square(0), square(1)])
    remote.close()
    assert found.info["kinds"] == ["unavailable"] * 2
    assert found.value.isnan().all()
    assert not found.valid.any()
    with pytest.raises(ServingError, match="unavailable"):
        RemoteReward(url, attempts=1)


def test_what_is_too_large_is_not_sent(url):
    with RemoteReward(url, token=TOKEN) as remote:
        found = remote([torch.rand(3, 150, 150), *(torch.rand(3, 100, 100) for _ in range(3)), torch.rand(3, 10, 4500)])
    assert found.info["kinds"] == ["too_large", None, None, None, "too_large"]  # 120 kB each: three requests


def test_a_late_image_fails_alone_and_typed(tmp_path, monkeypatch):
    (tmp_path / "slow_metric.py").write_text(
        "import time\n"
        "from zoomiqa_reward import MetricReward\n"
        "def measure(image, lq, prompt):\n"
        "    time.sleep(1.0 if prompt == 'slow' else 0.0)\n"
        "    return image.mean() - lq.mean()\n"
        "def factory():\n"
        "    return MetricReward(measure, 'slow', True, (-1, float('inf')), needs=('lq', 'prompts'))\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    backend = InProcess(RewardSpec(reward="slow_metric:factory", search_path=str(tmp_path)))
    limits = Limits(compute_timeout_s=0.5)
    with gateway(backend, tokens=(), limits=limits) as url, RemoteReward(url, attempts=1) as remote:
        assert remote.needs == {"lq", "prompts"}
        assert remote.score_range == (-1.0, math.inf)
        images, sources = [square(0), square(1)], [square(2, 28), square(3, 28)]
        with pytest.raises(ValueError, match="needs lq="):
            remote(images)
        found = remote(images, lq=sources, prompts=["quick", "slow"])
        assert found.info["kinds"] == [None, "compute_timeout"]
        assert found.value[0] == (images[0].mean() - sources[0].mean())
        assert kind_of(raw(url, request(one_body()))[0]) == (400, "malformed")  # no lq
    backend.scorer.close()


def test_a_reward_that_a_server_cannot_find_says_so():
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        Scorer(RewardSpec(reward="no_such_module:factory"), threads=1)


def test_metric_rewards_answer_batches_like_single_images():
    assert isinstance(MetricReward(torch.mean, "mean", True, (0, 1)), Reward)
    strict, batched = RewardSpec(reward="zoomiqa_reward.check.baselines:laplacian").build()
    assert strict is batched
