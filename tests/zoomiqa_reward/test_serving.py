"""The reward service without Ray: remote scores against local ones, and the client.

Replicas, their death and batching across requests are in test_serving_ray.py.
"""

import asyncio
import io
import math
import sys
import time

import numpy as np
import pytest
import torch
from in_process_server import (
    LIMITS,
    OTHER,
    TOKEN,
    InProcess,
    gateway,
    kind_of,
    nano_in_process,
    one_body,
    raw,
    reply,
    request,
    square,
)
from PIL import Image
from tiny import make_image

from zoomiqa_reward import MetricReward, Reward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.serving import FingerprintError, Limits, RemoteReward, RewardSpec, ServingError
from zoomiqa_reward.serving.scorer import Answer, Scorer
from zoomiqa_reward.serving.wire import EncodedImage, ScoreItem, encode_image, encode_request

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def backend():
    with nano_in_process() as backend:
        yield backend


@pytest.fixture(scope="module")
def url(backend):
    with gateway(backend) as url:
        yield url


@pytest.fixture
def local(nano):
    torch.set_num_threads(1)
    return ZoomIQAReward(ZoomIQA.from_pretrained("nano"))


# -- the gateway, over HTTP --


def test_remote_scores_equal_local_ones_bit_for_bit(url, local, tmp_path):
    eight_bit = (square(3, 70) * 255).round() / 255
    images = [square(0), square(1, 84), eight_bit, make_image(4, 60, 112), "no-such-file.png"]
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
    status, body, _ = reply(raw(url, request(encode_image(image).data, kind="image/png"))[0])
    assert status == 200
    assert body["fingerprint"] == local.fingerprint
    assert body["images"][0]["value"] == local(image).value.item()


def test_what_reading_a_png_lost_is_in_the_reply(url):
    clear, plain = io.BytesIO(), encode_image((square(0) * 255).round() / 255).data
    Image.new("RGBA", (64, 64), (200, 90, 30, 128)).save(clear, "png")
    [answer] = reply(raw(url, request(clear.getvalue(), kind="image/png"))[0])[1]["images"]
    assert answer["notes"] == ["image: transparency is put on white"]
    [answer] = reply(raw(url, request(plain, kind="image/png"))[0])[1]["images"]
    assert "notes" not in answer


def test_an_image_that_fails_leaves_the_others(url):
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, format="JPEG")
    bodies = [EncodedImage(data=jpeg.getvalue()), EncodedImage(data=np.full((3, 56, 56), np.nan, dtype="<f4").tobytes(),
              shape=(3, 56, 56)), encode_image(square(0))]  # fmt: skip
    status, body, _ = reply(raw(url, request(encode_request([ScoreItem(image=one) for one in bodies])))[0])
    assert status == 200
    assert [one["valid"] for one in body["images"]] == [False, False, True]
    assert [one["value"] is None for one in body["images"]] == [True, True, False]
    assert {one["error"]["type"] for one in body["images"][:2]} == {"unreadable_image"}


def test_the_second_token_is_known_too(url):
    status, info, head = reply(raw(url, request(method="GET", path="/info", token=OTHER))[0])
    assert status == 200
    assert info["limits"]["max_body_bytes"] == 200_000
    assert info["threads"] == 1
    assert "server:" not in head


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


@pytest.mark.parametrize("knows_the_limit", [True, False])
def test_an_image_of_too_many_pixels_fails_alone(url, local, knows_the_limit):
    flat = torch.full((3, 210, 200), 0.2)  # few bytes
    with RemoteReward(url, token=TOKEN) as remote:
        if not knows_the_limit:  # the server says the same of it
            remote._max_pixels = 10**9
        found = remote([square(0), flat, square(1)])
    assert found.info["kinds"] == [None, "too_large", None]
    assert "image has 200x210 pixels; the server takes 40000" in found.errors[1]
    assert torch.equal(found.value[::2], local([square(0), square(1)]).value)


def test_long_prompts_travel_in_several_requests(url):
    with RemoteReward(url, token=TOKEN) as remote:
        remote._max_body_bytes = 64 << 20
        long = {k: ScoreItem(image=encode_image(square(k)), prompt="p" * 100_000) for k in range(3)}
        assert list(remote._requests(long)) == [[0], [1], [2]]
        assert "a prompt of 200000 characters" in remote._too_large(
            ScoreItem(image=encode_image(square(0)), prompt="p" * 200_000)
        )


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


def picky(image, lq):
    if lq.shape[1] * 2 != image.shape[1]:
        raise ValueError("the image must be twice as large as its source")
    return image.mean()


PICKY = MetricReward(picky, "picky", True, (0, 1), needs=("lq",))


def test_an_image_that_does_not_fit_fails_alone_in_a_batch():
    """A batch holds images of several clients."""
    scorer = Scorer(RewardSpec(reward=f"{__name__}:PICKY"), threads=1)
    image, fits, wrong = square(0), square(1, 28), square(2, 20)
    items = [ScoreItem(image=encode_image(image), lq=encode_image(lq)) for lq in (fits, wrong, fits)]
    found = [answer.row for answer in asyncio.run(scorer.score(items, batched=True))]
    scorer.close()
    assert [row.valid for row in found] == [True, False, True]
    assert found[0].value == found[2].value == pytest.approx(float(image.mean()), abs=1e-2)
    assert "twice as large" in found[1].error["message"]


def test_metric_rewards_answer_batches_like_single_images():
    assert isinstance(MetricReward(torch.mean, "mean", True, (0, 1)), Reward)
    strict, batched = RewardSpec(reward="zoomiqa_reward.check.baselines:laplacian").build()
    assert strict is batched
