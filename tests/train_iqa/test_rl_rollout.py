"""Rollouts: real crops, inference's own questions, and the first law of RL: what was sampled is what is priced."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from tiny import ARCHS, CORPUS, make_image, make_tiny_checkpoint, tiny_iqa, tiny_protocol

from train_iqa.rl.rollout import draw_answers, draw_by_transformers, roll_out
from train_iqa.rows.completions import answer_logprobs, collate_completions
from train_iqa.rows.conversations import Conversation
from train_iqa.rows.turn_rows import ROUND1, ROUND2, build_row
from train_iqa.sft import target_nll
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import trie_of
from zoomiqa_reward.model.generate import Sampling, suppressed_tokens
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol import Decoding
from zoomiqa_reward.protocol.crops import zoom

SAMPLED = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=8, seed=3)
ZOOM = CORPUS[1]
FINAL = (
    '<think>Image Quality Summary: soft.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}'
    "</answer>"
)
LONG = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=110, seed=0)


@functools.cache
def zooming_folder():
    """Return a tiny checkpoint that was taught, by SFT's own loss, to look closer and then to decide."""
    root = tempfile.mkdtemp(prefix="tiny-zoom-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    protocol = tiny_protocol(
        sections1=("Image Quality Summary", "Decision & Rationale"), sections2=("Image Quality Summary",),
        decoding=Decoding(max_new_tokens=110),
    )  # fmt: skip
    folder = make_tiny_checkpoint(Path(root) / "zooming", protocol=protocol)
    checkpoint = load_checkpoint(folder, device="cpu")
    trie, model = trie_of(checkpoint), checkpoint.model.requires_grad_(True)
    images = [make_image(seed, 56, 56 + 28 * seed) for seed in range(2)]
    talks = [Conversation(image=image, rounds=(ZOOM, FINAL), rating=3.25) for image in images]
    rows = [build_row(checkpoint, trie, talk, kind) for talk in talks for kind in (ROUND1, ROUND2)]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(140):
        (target_nll(model, checkpoint, rows) / 100).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def price(checkpoint, turns, temperature=1.0, together=True):
    rows = [turn.row for turn in turns]
    found = []
    for some in [rows] if together else [[row] for row in rows]:
        batch = collate_completions(checkpoint, some)
        logprobs, _ = answer_logprobs(
            checkpoint.model, batch, temperature=temperature, suppressed=suppressed_tokens(checkpoint)
        )
        found += [one[mask] for one, mask in zip(logprobs, batch.mask, strict=True)]
    return found


@pytest.mark.integration
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recomputed_log_probabilities_are_the_sampled_ones(arch, temperature):
    """The ratio before any update is 1, whatever the company of a row in its batch."""
    checkpoint = tiny_iqa(arch).checkpoint
    sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0, max_new_tokens=8, seed=3)
    groups = roll_out(checkpoint, [make_image(0), make_image(1, 120, 64)], num_samples=3, sampling=sampling)
    turns = [turn for group in groups for one in group for turn in one.turns]
    for together in (True, False):
        for turn, again in zip(turns, price(checkpoint, turns, temperature, together), strict=True):
            ratio = (again - turn.logprobs).exp()
            assert ratio.shape == turn.row.completion_ids.shape
            assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-4)
    wrong = price(checkpoint, turns, temperature * 1.5)  # the test can fail
    assert max(float((a - turn.logprobs).abs().max()) for a, turn in zip(wrong, turns, strict=True)) > 0.01


@pytest.mark.integration
def test_two_rounds_hold_a_real_crop_and_ask_what_inference_asks():
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    images = [make_image(0, 56, 56), make_image(1, 56, 84)]
    groups = roll_out(checkpoint, images, num_samples=4, sampling=LONG)
    zoomed = [(i, one) for i, group in enumerate(groups) for one in group if len(one.turns) == 2]
    assert len(zoomed) >= 2
    for i, one in zoomed:
        first, second = one.assessment.turns
        crop, box = zoom(images[i], first.bbox, checkpoint.protocol.crop)
        assert second.crop_box == box
        grid = one.turns[1].row.prompt.image_grid_thw
        assert grid.shape[0] == 2
        prompt = checkpoint.tokenizer.decode(one.turns[1].row.prompt.input_ids.tolist())
        assert first.text in prompt  # round 2 quotes the whole of round 1
        wanted = make_row(checkpoint, round2(checkpoint.protocol, images[i], crop, first.text))
        for name in ("input_ids", "pixel_values", "image_grid_thw"):
            assert torch.equal(getattr(one.turns[1].row.prompt, name), getattr(wanted, name))
        wanted = make_row(checkpoint, round1(checkpoint.protocol, images[i]))
        assert torch.equal(one.turns[0].row.prompt.input_ids, wanted.input_ids)
    turns = [turn for group in groups for one in group for turn in one.turns]
    for turn, again in zip(turns, price(checkpoint, turns), strict=True):
        assert torch.allclose(again, turn.logprobs, atol=1e-4)
    for group in groups:
        for one in group:
            assert [t.text for t in one.assessment.turns] == [
                checkpoint.tokenizer.decode(t.row.completion_ids.tolist(), skip_special_tokens=True) for t in one.turns
            ]
    # Samples of one image share its pixels in memory.
    assert groups[0][0].turns[0].row.prompt.pixel_values is groups[0][1].turns[0].row.prompt.pixel_values


@pytest.mark.integration
@pytest.mark.parametrize("arch", ARCHS)
def test_the_fast_draw_is_transformers_draw(arch):
    """Same tokens and log-probabilities; rows that end at different steps leave the batch, samples share a reading."""
    checkpoint = tiny_iqa(arch).checkpoint
    images = [make_image(0), make_image(0), make_image(1, 120, 64)]
    rows = [make_row(checkpoint, round1(checkpoint.protocol, image)) for image in images]
    sampling = Sampling(temperature=0.9, top_p=1.0, top_k=0, max_new_tokens=21, seed=4)
    fast = draw_answers(checkpoint, rows, sampling)
    plain = draw_by_transformers(checkpoint, rows, sampling)
    for one, other in zip(fast, plain, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert one.logprobs.dtype == torch.float32
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-4)
    ends = [len(one.ids) for one in fast]
    assert len(set(ends)) > 1 or max(ends) == 21


def test_an_image_without_content_has_its_trajectories_in_its_place():
    """Inference does not ask about it, but a data set may hold it with a score; a run must not end there."""
    checkpoint = tiny_iqa().checkpoint
    images = [make_image(0), torch.zeros(3, 56, 56), make_image(1)]
    groups = roll_out(checkpoint, images, num_samples=2, sampling=SAMPLED)
    for image, group in zip(images, groups, strict=True):
        asked = make_row(checkpoint, round1(checkpoint.protocol, image))
        for one in group:
            assert len(one.turns) == len(one.assessment.turns) >= 1
            assert torch.equal(one.turns[0].row.prompt.pixel_values, asked.pixel_values)
    alone = roll_out(checkpoint, images[1:2], num_samples=2, sampling=SAMPLED)
    assert [[t.text for t in one.assessment.turns] for one in alone[0]] == [
        [t.text for t in one.assessment.turns] for one in groups[1]
    ]


@pytest.mark.integration
def test_a_seed_repeats_a_rollout_and_leaves_the_random_state_alone():
    checkpoint = tiny_iqa().checkpoint

    def texts(seed):
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=6, seed=seed)
        (group,) = roll_out(checkpoint, [make_image()], num_samples=3, sampling=sampling)
        return [turn.text for one in group for turn in one.assessment.turns]

    state = torch.get_rng_state()
    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.integration
def test_the_end_token_is_a_row_of_its_own_answer_and_cut_answers_have_none():
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    end = checkpoint.tokenizer.eos_token_id
    (group,) = roll_out(checkpoint, [make_image(0, 56, 56)], num_samples=4, sampling=LONG)
    for one in group:
        for turn in one.turns:
            assert (int(turn.row.completion_ids[-1]) == end) != turn.is_truncated
            assert end not in turn.row.completion_ids[:-1].tolist()
            assert turn.row.targets.all()
    assert not all(turn.is_truncated for one in group for turn in one.turns)


def test_both_draws_keep_the_end_token_of_an_answer():
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    rows = [make_row(checkpoint, round1(checkpoint.protocol, make_image(0, 56, 56)))] * 4
    drawn = [draw(checkpoint, rows, LONG) for draw in (draw_answers, draw_by_transformers)]
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert len(other.ids) == len(other.logprobs)
        assert (int(other.ids[-1]) == checkpoint.tokenizer.eos_token_id) != (len(other.ids) == LONG.max_new_tokens)
    assert any(len(one.ids) < LONG.max_new_tokens for one in drawn[1])


def test_greedy_answers_are_those_of_inference():
    """Almost no temperature: the sampled text is what `assess` says, so training sees the same model."""
    checkpoint = tiny_iqa().checkpoint
    (group,) = roll_out(
        checkpoint, [make_image()], num_samples=2,
        sampling=Sampling(temperature=1e-4, top_p=1.0, top_k=0, max_new_tokens=8, seed=0),
    )  # fmt: skip
    ((wanted,),) = assess_images(checkpoint, [make_image()], sampling=Sampling(max_new_tokens=8))
    assert [turn.text for turn in group[0].assessment.turns] == [turn.text for turn in wanted.turns]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 50}])
def test_decoding_that_could_not_be_priced_is_refused(options):
    fields = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | options
    with pytest.raises(ValueError, match="whole distribution"):
        roll_out(tiny_iqa().checkpoint, [make_image()], num_samples=2, sampling=Sampling(**fields))
