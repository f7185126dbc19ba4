"""What a pass costs the host, counted on a thin 7B, and that its answers are those of the plain way."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from thin_7b import LEAST, LEAST_SIDES, SIDES, SMALL_SIDES, SMALL_WINDOW, Reads, counted, thin_7b
from tiny import ARCHS, make_image, make_tiny_checkpoint, tiny_iqa, with_lora

from zoomiqa_reward.model import language, reading
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.decode import BLOCK, TokenChoice, write_answers
from zoomiqa_reward.model.direct import leaf_logprobs, rate_direct, trie_of
from zoomiqa_reward.model.generate import SampledChoice, Sampling, end_tokens, generate, plain_new_ids
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.plain import plain_leaf_logprobs
from zoomiqa_reward.model.tower import read_images
from zoomiqa_reward.model.turns import round1, round2

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def thin():
    return thin_7b(window_size=SMALL_WINDOW)


@pytest.fixture(scope="module", params=ARCHS)
def random_checkpoint(request, tmp_path_factory):
    """Untaught, with large weights: every part of the input shows in the output."""
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("random"), request.param, 3), device="cpu")


def row_of(checkpoint, *size, seed=0):
    return make_row(checkpoint, round1(checkpoint.protocol, make_image(seed, *size)))


def by_library(checkpoint, row):
    found = checkpoint.model.model.get_image_features(row.pixel_values, row.image_grid_thw, return_dict=True)
    return torch.cat(tuple(found.pooler_output))


@torch.no_grad()
def test_the_tower_attends_in_one_call_for_windows_of_one_length(thin):
    row = row_of(thin, *SMALL_SIDES)
    _, *grid = row.image_grid_thw[0].tolist()
    plain = counted(lambda: by_library(thin, row), repeats=0)
    fast = counted(lambda: read_images(thin.model, row.pixel_values[None], tuple(grid)), repeats=0)
    assert plain.attentions == 28 * 63 + 4  # a call for each of 63 windows
    assert fast.attentions == 28 * 2 + 4  # windows of two lengths
    assert fast.synchronisations == 0 < plain.synchronisations
    assert fast.operators <= plain.operators / 5


def test_the_small_size_has_as_many_windows_as_the_real_one():
    def windows(sides, window):
        return [-(-side // window) for side in sides], [side % window > 0 for side in sides]

    assert windows(SMALL_SIDES, SMALL_WINDOW) == windows(SIDES, 112)
    assert windows(LEAST_SIDES, LEAST["window_size"])[0] == windows(SIDES, 112)[0]


@torch.no_grad()
@pytest.mark.parametrize("size", [(56, 56), (84, 84), (140, 196), (168, 84), (364, 504)])
def test_features_are_the_librarys(thin, size):
    """Sizes of whole windows, of windows cut at one side, at both, and smaller than one."""
    rows = [row_of(thin, *size, seed=seed) for seed in range(2)]
    _, *grid = rows[0].image_grid_thw[0].tolist()
    found = read_images(thin.model, torch.stack([row.pixel_values for row in rows]), tuple(grid)).tokens
    for row, one in zip(rows, found, strict=True):
        torch.testing.assert_close(one, by_library(thin, row), atol=1e-4, rtol=0)


def test_gradients_of_features_are_the_librarys(thin):
    row = row_of(thin, 84, 140)
    _, *grid = row.image_grid_thw[0].tolist()
    pixels = row.pixel_values.clone().requires_grad_(True)
    weights = torch.randn(by_library(thin, row).shape, generator=torch.Generator().manual_seed(0))
    [own] = torch.autograd.grad((read_images(thin.model, pixels[None], tuple(grid)).tokens[0] * weights).sum(), pixels)
    library = thin.model.model.get_image_features(pixels, row.image_grid_thw, return_dict=True)
    [plain] = torch.autograd.grad((torch.cat(tuple(library.pooler_output)) * weights).sum(), pixels)
    torch.testing.assert_close(own, plain, atol=1e-4 * float(plain.abs().max()), rtol=0)


@torch.no_grad()
def test_a_step_costs_half_of_a_plain_one_and_the_host_looks_every_eighth(thin):
    row = row_of(thin, 112, 112)

    def fast(count):
        sampling = Sampling(max_new_tokens=count)
        choice = SampledChoice(thin, sampling, 1)
        return counted(
            lambda: write_answers(thin, [row], choice, max_new_tokens=count, ends=[]), repeats=0
        )  # fmt: skip

    def plain(count):
        return counted(lambda: plain_new_ids(thin, [row], Sampling(max_new_tokens=count)), repeats=0)

    costs = {}
    for way in (fast, plain):
        few, many = way(BLOCK), way(3 * BLOCK)
        costs[way] = [(getattr(many, name) - getattr(few, name)) / (2 * BLOCK)
                      for name in ("operators", "synchronisations")]  # fmt: skip
    assert costs[fast][0] <= costs[plain][0] / 2
    assert costs[fast][1] <= 1 / 8 < costs[plain][1]


@torch.no_grad()
def test_greedy_answers_are_the_plain_ones(random_checkpoint):
    """Rows of different lengths, with one image and with two, and twice the same."""
    protocol, images = random_checkpoint.protocol, [make_image(i, 64 + 30 * i, 90) for i in range(3)]
    asked = [*(round1(protocol, image) for image in images), round2(protocol, images[0], images[1], "<think>?</think>")]
    rows = [make_row(random_checkpoint, prompted) for prompted in asked]
    rows = [*rows, rows[1]]
    sampling = Sampling(max_new_tokens=21)
    plain = plain_new_ids(random_checkpoint, rows, sampling)
    choice = SampledChoice(random_checkpoint, sampling, len(rows))
    fast = write_answers(random_checkpoint, rows, choice, max_new_tokens=21, ends=[])
    ends = {int(random_checkpoint.tokenizer.eos_token_id)}
    for one, other in zip(plain, fast, strict=True):
        end = next((place for place, token in enumerate(one) if token in ends), len(one) - 1)
        assert other[: end + 1] == one[: end + 1]


@pytest.mark.parametrize("target_modules", [["qkv", "proj"], "all-linear", ["embed_tokens", "lm_head"]])
@torch.no_grad()
def test_an_adapter_that_is_not_merged_counts_in_every_part(random_checkpoint, target_modules):
    """`proj` names the output of the tower's attention, and the patch embedding as well, which is no linear layer."""
    adapted = with_lora(copy.deepcopy(random_checkpoint.model), target_modules=target_modules)
    checkpoint = replace(random_checkpoint, model=adapted.get_base_model())
    row, trie = row_of(checkpoint, 64, 90), trie_of(checkpoint)
    found, plain = (way(checkpoint, trie, [row]) for way in (leaf_logprobs, plain_leaf_logprobs))
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)
    assert (found - leaf_logprobs(random_checkpoint, trie, [row])).abs().max() > 0.1


@torch.no_grad()
def test_a_step_computes_the_activation_that_the_config_names(tmp_path):
    folder = make_tiny_checkpoint(tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"text_config": config["text_config"] | {"hidden_act": "gelu"}}))
    checkpoint, sampling = load_checkpoint(folder, device="cpu"), Sampling(max_new_tokens=21)
    row = row_of(checkpoint, 64, 90)
    choice = SampledChoice(checkpoint, sampling, 1)
    fast = write_answers(checkpoint, [row], choice, max_new_tokens=21, ends=end_tokens(checkpoint))
    assert fast == plain_new_ids(checkpoint, [row], sampling)


class Scripted(TokenChoice):
    """Writes what a script says, a row of tokens for each row, and keeps who was asked."""

    def __init__(self, script):
        self.script, self.step, self.alive, self.asked = script, 0, list(range(len(script))), []

    def scores(self, logits):
        self.asked.append(len(logits))
        for place, row in enumerate(self.alive):
            logits[place, self.script[row][self.step]] = 1e9
        self.step += 1
        return logits

    def keep(self, rows):
        self.alive = [self.alive[row] for row in rows]


@torch.no_grad()
def test_rows_that_ended_leave_and_the_others_go_on(random_checkpoint):
    rows = [row_of(random_checkpoint, 64 + 30 * i, 90) for i in range(3)]
    end, total = 7, 3 * BLOCK
    script = [[9] * total, [9, end] + [11] * total, [9] * (BLOCK + 1) + [end] + [11] * total]
    choice = Scripted(script)
    answers = write_answers(random_checkpoint, rows, choice, max_new_tokens=total, ends=[end])
    assert answers == [[9] * total, [9, end], [9] * (BLOCK + 1) + [end]]
    assert choice.asked == [3] * BLOCK + [2] * BLOCK + [1] * BLOCK


@torch.no_grad()
def test_a_draw_does_not_depend_on_who_leaves(random_checkpoint):
    """The same seeds, alone and beside rows that end early: the same words."""
    rows = [row_of(random_checkpoint, 64, 90, seed=seed) for seed in range(3)]
    hot = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 40}
    together = generate(random_checkpoint, rows, Sampling(seed=(5, 6, 7), **hot))
    alone = [generate(random_checkpoint, [row], Sampling(seed=(5 + k,), **hot))[0] for k, row in enumerate(rows)]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) == 3


@pytest.mark.parametrize("arch", ARCHS)
def test_the_text_before_the_image_is_read_once_a_call(arch, monkeypatch):
    """Whatever number of images and views: and the answers are those of the plain way."""
    checkpoint = tiny_iqa(arch).checkpoint
    read, seen = language.read, []
    monkeypatch.setattr(
        reading, "read", lambda model, ids, *a, **k: seen.append(ids.shape[1]) or read(model, ids, *a, **k)
    )
    images = [make_image(seed, 200, 230) for seed in range(3)]
    trie = trie_of(checkpoint)
    with torch.no_grad():
        found = rate_direct(checkpoint, trie, images, batch_size=2)
    assert found.valid.all()
    before = [count for count in seen if count == min(seen)]
    assert len(before) == 1 < len(seen)
    row = row_of(checkpoint, 64, 90)
    assert min(seen) == int((row.input_ids == checkpoint.image_token_id).nonzero()[0])
    with torch.no_grad():
        plain, own = plain_leaf_logprobs(checkpoint, trie, [row]), leaf_logprobs(checkpoint, trie, [row])
    torch.testing.assert_close(own, plain, atol=1e-4, rtol=0)


def test_round_two_and_samples_read_the_image_once(monkeypatch):
    """Two samples of two rounds: the image in round 1, and only the crops after it."""
    from zoomiqa_reward.model.generate import Completion
    from zoomiqa_reward.model.reason import _Writing

    checkpoint = tiny_iqa().checkpoint
    read, seen = reading.read_images, []

    def watch(model, patches, grid):
        seen.append((len(patches), grid))
        return read(model, patches, grid)

    monkeypatch.setattr(reading, "read_images", watch)
    image, crops = make_image(0, 84, 112), [make_image(1, 56, 56), make_image(2, 56, 56)]
    writing = _Writing(checkpoint, generate, strict=False)
    sampling = Sampling(temperature=1.0, seed=(1, 2), max_new_tokens=4)
    first = writing([round1(checkpoint.protocol, image)] * 2, sampling)
    assert all(isinstance(one, Completion) for one in first)
    assert seen == [(1, (6, 8))]
    asked = [round2(checkpoint.protocol, image, crop, one.text) for crop, one in zip(crops, first, strict=True)]
    writing(asked, sampling)
    assert seen == [(1, (6, 8)), (2, (4, 4))]
    writing.forget()
    writing([round1(checkpoint.protocol, image)] * 2, sampling)
    assert seen[-1] == (1, (6, 8))


def test_a_gradient_may_follow_a_rating_in_inference_mode():
    """What is kept from call to call must be fit for a graph, wherever it was made."""
    iqa, image = tiny_iqa(), make_image(5, 98, 154)  # a size that no other test reads
    with torch.inference_mode():
        plain = iqa.rate(image, strict=True).mean.clone()
    shown = image.clone().requires_grad_(True)
    ratings = iqa.rate(shown, strict=True, grad=True)
    ratings.mean.sum().backward()
    assert shown.grad.abs().sum() > 0
    assert torch.equal(ratings.mean.detach(), plain)


def test_the_count_sees_what_stops_a_device():
    x = torch.arange(4.0)
    with Reads() as reads:
        x.tolist(), float(x[0]), bool(x[1] > 0), x[x > 1], x.nonzero(), x.repeat_interleave(torch.arange(4))
        x[1:3], x[torch.tensor([1, 2])], x.repeat_interleave(2), torch.where(x > 1, x, -x)
    assert reads.names.total() == 6
