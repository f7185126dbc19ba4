"""Promises that only a CUDA device can show: `pytest -m gpu tests/zoomiqa_reward/test_gpu.py`."""

import pytest
import torch
from photographs import photograph
from thin_7b import SIDES, counted, thin_7b
from tiny import make_image

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.model.budget import pass_pixels
from zoomiqa_reward.model.decode import BLOCK, write_answers
from zoomiqa_reward.model.direct import leaf_logprobs, trie_of
from zoomiqa_reward.model.generate import SampledChoice, Sampling, plain_new_ids
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.numerics import canonical_numerics
from zoomiqa_reward.model.plain import plain_leaf_logprobs
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.model.views import CHUNK_PIXELS

pytestmark = pytest.mark.gpu


def images():
    return [photograph(seed, 200 + 40 * seed, 260) for seed in range(4)]


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained("nano", device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def thin():
    return thin_7b("cuda")


def test_strict_ratings_are_bit_equal_in_any_order_and_company(iqa):
    together = iqa.rate(images(), strict=True)
    backwards = iqa.rate(images()[::-1], strict=True)
    assert torch.equal(backwards.mean.flip(0), together.mean)
    assert torch.equal(backwards.std.flip(0), together.std)
    for index, image in enumerate(images()):
        assert torch.equal(iqa.rate(image, strict=True).mean[0], together.mean[index])


def test_float32_is_the_cpus(iqa):
    """No TF32: it rounds to 1e-3."""
    cpu = ZoomIQA.from_pretrained("nano", device="cpu").rate(images(), strict=True)
    torch.testing.assert_close(iqa.rate(images(), strict=True).mean, cpu.mean, atol=1e-5, rtol=0)


def test_pixel_gradients_are_the_cpus_and_repeatable(iqa):
    def gradient(model, device):
        image = photograph(1, 200, 260).to(device).requires_grad_(True)
        [found] = torch.autograd.grad(model.rate(image, strict=True, grad=True).mean.sum(), image)
        return found.cpu()

    first = gradient(iqa, "cuda")
    expected = gradient(ZoomIQA.from_pretrained("nano", device="cpu"), "cpu")
    assert (first - expected).norm() <= 1e-3 * expected.norm()
    assert torch.equal(gradient(iqa, "cuda"), first)


@torch.no_grad()
def test_fast_passes_give_the_plain_answers(thin):
    row = make_row(thin, round1(thin.protocol, make_image(0, *SIDES)))
    trie, sampling = trie_of(thin), Sampling(max_new_tokens=24)
    with canonical_numerics():
        plain = plain_leaf_logprobs(thin, trie, [row])
        torch.testing.assert_close(leaf_logprobs(thin, trie, [row]), plain, atol=1e-4, rtol=0)
        fast = write_answers(thin, [row], SampledChoice(thin, sampling, 1), max_new_tokens=24, ends=[])
        assert fast == plain_new_ids(thin, [row], sampling)


@torch.no_grad()
def test_the_host_looks_at_most_every_eighth_step(thin):
    row = make_row(thin, round1(thin.protocol, make_image(0, 112, 112)))

    def looks(count):
        choice = SampledChoice(thin, Sampling(max_new_tokens=count), 1)
        return counted(
            lambda: write_answers(thin, [row], choice, max_new_tokens=count, ends=[]), repeats=0
        ).synchronisations  # fmt: skip

    assert looks(5 * BLOCK) - looks(BLOCK) <= 4


def test_a_pass_reads_what_the_memory_holds(iqa):
    assert pass_pixels(iqa.checkpoint) > CHUNK_PIXELS
