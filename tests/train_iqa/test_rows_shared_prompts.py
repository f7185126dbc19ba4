"""Answers that share a prompt: the numbers of rows of their own, and fewer tokens read."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import ARCHS, make_image, tiny_iqa

from train_iqa.rows.completions import TrainingRow, answer_logprobs, collate_completions
from train_iqa.rows.shared_prompts import can_share, collate_shared, shared_batches
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.turns import round1, round2


def rows_of(checkpoint):
    """Five answers of other lengths to two images, and two second rounds of one of them."""
    images, generator = [make_image(0, 84, 84), make_image(1, 120, 64)], torch.Generator().manual_seed(0)
    asked = [round1(checkpoint.protocol, image) for image in images]
    asked += [round2(checkpoint.protocol, images[0], images[0][:, :56, :56], text) for text in ("a", "b")]
    prompts = [make_row(checkpoint, one) for one in asked]
    rows = []
    for prompt, count in ((0, 5), (1, 9), (0, 3), (1, 1), (0, 7), (2, 4), (3, 6)):
        ids = torch.randint(20, 60, (count,), generator=generator)
        targets = torch.arange(count) > 0
        rows.append(TrainingRow(prompt=prompts[prompt], completion_ids=ids, targets=targets))
    return rows


def logprobs(checkpoint, batch):
    found, entropy = answer_logprobs(checkpoint.model, batch, temperature=0.8, suppressed=(3,), entropy=True)
    assert torch.equal(found == 0, ~batch.mask)
    return found, entropy


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ARCHS)
def test_log_probabilities_entropies_and_gradients_are_those_of_rows_of_their_own(arch, attention):
    checkpoint = copy.deepcopy(tiny_iqa(arch).checkpoint)  # other tests read the one that is kept
    if not can_share(checkpoint):
        pytest.skip("recurrent layers")
    checkpoint.model.set_attn_implementation(attention)
    model, rows = checkpoint.model.requires_grad_(True), rows_of(checkpoint)
    shared, apart = collate_shared(checkpoint, rows), collate_completions(checkpoint, rows)
    assert shared.inputs["input_ids"].shape[0] == 4
    assert shared.inputs["image_grid_thw"].shape[0] == 6  # two images, and two in each second round
    for name in ("completion_ids", "mask", "targets"):
        assert torch.equal(getattr(shared, name), getattr(apart, name))
    weight = torch.randn(apart.mask.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for batch in (shared, apart):
        found, entropy = logprobs(checkpoint, batch)
        model.zero_grad()
        (found * weight).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(found, logprobs(checkpoint, apart)[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entropy, logprobs(checkpoint, apart)[1], rtol=1e-4, atol=1e-4)
    largest = max(float(one.abs().max()) for one in gradients[1])
    assert largest > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * largest)


def test_an_answer_does_not_see_another():
    checkpoint = tiny_iqa().checkpoint
    rows = rows_of(checkpoint)
    before, _ = logprobs(checkpoint, collate_shared(checkpoint, rows))
    rows[0] = replace(rows[0], completion_ids=rows[0].completion_ids.flip(0))
    after, _ = logprobs(checkpoint, collate_shared(checkpoint, rows))
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=1e-5)
    assert not torch.allclose(after[0], before[0], atol=1e-3)


def test_a_prompt_is_read_once_and_equal_text_about_another_image_is_another_prompt():
    checkpoint = tiny_iqa().checkpoint
    rows = rows_of(checkpoint)
    some = [rows[k] for k in (0, 2, 4)]
    batch = collate_shared(checkpoint, some)
    prompt = some[0].prompt.input_ids.shape[0]
    assert batch.inputs["input_ids"].shape == (1, prompt + 5 + 3 + 7)
    other = make_row(checkpoint, round1(checkpoint.protocol, make_image(7, 84, 84)))
    assert torch.equal(other.input_ids, some[0].prompt.input_ids)
    assert collate_shared(checkpoint, [*some, replace(some[0], prompt=other)]).inputs["input_ids"].shape[0] == 2


def test_rows_without_a_common_prompt_stay_rows():
    checkpoint = tiny_iqa().checkpoint
    rows = [rows_of(checkpoint)[k] for k in (0, 1, 5)]
    shared, apart = collate_shared(checkpoint, rows), collate_completions(checkpoint, rows)
    assert shared.places is None
    assert all(torch.equal(shared.inputs[name], apart.inputs[name]) for name in apart.inputs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_batches_hold_every_row_once_and_keep_answers_to_a_prompt_together(size):
    rows = rows_of(tiny_iqa().checkpoint)
    batches = shared_batches(rows, size)
    assert sorted(k for batch in batches for k in batch) == list(range(7))
    assert max(map(len, batches)) <= size
    if size >= 3:  # the three answers to the first image
        assert any({0, 2, 4} <= set(batch) for batch in batches)
        assert any({1, 3} <= set(batch) for batch in batches)
    with pytest.raises(ValueError, match="at least 1"):
        shared_batches(rows, 0)
