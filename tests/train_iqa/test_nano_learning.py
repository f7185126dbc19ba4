"""What nano learns from: rows, number targets, the tree of ratings, and the optimizer. Small and random models."""

import re

import numpy as np
import pytest
import torch

from train_iqa.nano import language
from train_iqa.nano.build import build_model, build_tokenizer
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.dense import DenseHeads, Targets
from train_iqa.nano.labels import NUM_BANDS
from train_iqa.nano.language import RatingTree, Readouts, bell, digit_targets, pair_loss, rows_loss
from train_iqa.nano.optimizers import SplitOptimizer, WeightAverage, orthogonalised
from train_iqa.nano.rationale import nano_protocol
from train_iqa.nano.rows import RowBuilder, mirrored, mrope_positions
from train_iqa.nano.store import KINDS
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.direct import leaf_logprobs, trie_of
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.protocol import read_rating

BLUR = Step(kind="motion_blur", severity=0.8, params={"length_px": 9.0})
LOCAL, EVEN = DamageRecord(steps=(BLUR,), box=(0.5, 0.5, 1.0, 0.9)), DamageRecord(steps=(BLUR,))


@pytest.fixture(scope="module")
def builder():
    protocol = nano_protocol()
    corpus = ["The photo shows strong motion blur", "user assistant " + protocol.round1.text, "0.12, 3.45"]
    return RowBuilder(build_tokenizer(corpus), protocol)


@pytest.fixture(scope="module")
def model(builder):
    return build_model(builder.tokenizer, seed=0).eval()


def rng():
    return np.random.default_rng(0)


def test_a_rows_targets_are_the_answers_tokens_and_nothing_else(builder):
    row = builder.first(LOCAL, (2, 3), 2.5, rng())
    digits = {number.at + offset for number in row.numbers for offset in (0, 2, 3)}
    assert sorted({*row.texts.tolist(), *digits}) == list(range(row.texts.min(), len(row.ids)))
    assert [number.is_box for number in row.numbers] == [True] * 4 + [False]
    assert (row.ids == builder.image_id).sum() == 6
    answer = builder.tokenizer.decode(row.ids[row.texts.min() :])
    assert read_rating(answer) == pytest.approx(row.numbers[-1].hundredths / 100)
    assert row.numbers[-1].hundredths / 100 == pytest.approx(2.5, abs=0.6)


def test_round_2_speaks_of_the_truth_and_quotes_what_was_said(builder):
    row = builder.second(EVEN, LOCAL, (2, 3), (2, 2), 2.5, rng())
    text = builder.tokenizer.decode(row.ids)
    quoted, answer = text[: text.index("Crop Inspection Summary")], text[text.index("Crop Inspection Summary") :]
    assert "in the lower right" in quoted
    assert "over the whole frame" in answer
    assert (row.ids == builder.image_id).sum() == 6 + 4


def test_positions_are_those_that_the_model_takes_itself(builder, model):
    for row in (builder.first(LOCAL, (2, 3), 2.5, rng()), builder.second(LOCAL, LOCAL, (3, 2), (2, 4), 2.5, rng())):
        ids = torch.from_numpy(row.ids)[None]
        grids = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in row.grids])
        kinds = (ids == builder.image_id).int()
        own, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=torch.ones_like(ids))
        assert torch.equal(own[:, 0], torch.from_numpy(mrope_positions(row.ids, row.grids, builder.image_id)))


def test_digit_targets_multiply_to_the_bell():
    """The product of the three conditional digits along a drawn number is that number's probability."""
    values = torch.arange(100, 501) / 100
    for drawn in (100, 287, 297, 310, 500):
        centre, sigma = torch.tensor([2.97]), torch.tensor([0.2])
        digits = digit_targets(centre, torch.tensor([drawn]), torch.tensor([False]), sigma)[:, 0]
        product = np.prod([float(digits[k, int(d)]) for k, d in enumerate(f"{drawn:03d}")])
        assert product == pytest.approx(float(bell(values, centre, 0.2)[0, drawn - 100]), rel=1e-3, abs=1e-12)
    shares = digit_targets(torch.tensor([0.98]), torch.tensor([100]), torch.tensor([True]), torch.tensor([0.02]))
    assert shares[1, 0, 0] == 1  # after 1. only 1.00 is left


def test_the_width_of_a_builders_bell_is_that_of_its_rows_and_of_their_targets(builder, model, monkeypatch):
    wide = RowBuilder(builder.tokenizer, builder.protocol, box_sigma=0.2)
    spread, found, original = [], [], language.digit_targets
    monkeypatch.setattr(language, "digit_targets", lambda *given: found.append(given[3]) or original(*given))
    for one in (builder, wide):
        rows = [one.first(LOCAL, (2, 3), 2.5, np.random.default_rng(k)) for k in range(40)]
        edges = [number for row in rows for number in row.numbers if number.is_box and 0.2 < number.value < 0.8]
        spread.append(np.std([number.hundredths / 100 - number.value for number in edges]))
        rows_loss(model, one, rows[:1], torch.zeros(6, model.config.text_config.hidden_size))
    assert spread == pytest.approx([0.02, 0.2], rel=0.25)
    wanted = torch.tensor([[0.02] * 4 + [0.15], [0.2] * 4 + [0.15]])
    torch.testing.assert_close(torch.stack(found), wanted)
    # What round 2 quotes is the box that was cropped, so it stays exact.
    quoted = wide.second(LOCAL, LOCAL, (2, 3), (2, 2), 2.5, rng())
    text = wide.tokenizer.decode(quoted.ids).replace(" ", "")
    named = re.findall(r'"bbox_2d":\[(\d\.\d\d),(\d\.\d\d)', text)[0]
    assert [float(edge) for edge in named] == pytest.approx(LOCAL.box[:2], abs=0.08)


def test_a_rows_loss_is_the_same_in_company(builder, model):
    readouts = Readouts(256)
    rows = [builder.first(EVEN, (2, 3), 2.5, rng()), builder.first(LOCAL, (2, 3), 3.5, np.random.default_rng(1))]
    tokens, truth = torch.randn(12, 256, generator=torch.Generator().manual_seed(0)), torch.rand(12, 3).round()
    alone = [rows_loss(model, builder, [row], tokens[6 * k : 6 * k + 6], readouts, truth[6 * k : 6 * k + 6])[1]
             for k, row in enumerate(rows)]  # fmt: skip
    both = rows_loss(model, builder, rows, tokens, readouts, truth)[1]
    assert both["rating"] == pytest.approx((alone[0]["rating"] + alone[1]["rating"]) / 2, abs=0.02)  # bfloat16
    assert both["box"] == pytest.approx(alone[1]["box"], abs=0.02)
    assert "box" not in alone[0]


@torch.no_grad()
def test_every_token_and_digit_is_learned_from_the_tokens_before_it(builder, model):
    """Else a digit is learned by copying it, and answers are noise. Written out token by token."""
    readouts, row = Readouts(256), builder.first(LOCAL, (2, 3), 2.5, rng())
    tokens, truth = torch.randn(6, 256, generator=torch.Generator().manual_seed(0)), torch.rand(6, 3).round()
    parts = rows_loss(model, builder, [row], tokens, readouts, truth)[1]
    ids = torch.from_numpy(row.ids)
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == builder.image_id] = tokens
    positions = torch.from_numpy(row.positions)[:, None]
    out = model.model.language_model(inputs_embeds=embeds[None], position_ids=positions, output_hidden_states=True)
    logprobs = model.lm_head(out.last_hidden_state[0]).log_softmax(-1)
    text = -np.mean([float(logprobs[at - 1, ids[at]]) for at in row.texts])
    entropies = {False: [], True: []}
    for number in row.numbers:
        sigma = torch.tensor([0.02 if number.is_box else 0.15])
        drawn, is_box = torch.tensor([number.hundredths]), torch.tensor([number.is_box])
        wanted = digit_targets(torch.tensor([number.value]), drawn, is_box, sigma)[:, 0]
        for share, offset in zip(wanted, (0, 2, 3), strict=True):  # a dot stands between the first two
            entropies[number.is_box].append(-float((share * logprobs[number.at + offset - 1, builder.digit_ids]).sum()))
    edges = [float(readouts.edge(out.hidden_states[4][0, number.at + 1])) - number.value for number in row.numbers[:4]]
    assert parts["text"] == pytest.approx(text, rel=1e-3)
    assert parts["rating"] == pytest.approx(np.mean(entropies[False]), rel=1e-3)
    assert parts["box"] == pytest.approx(np.mean(entropies[True]), rel=1e-3)
    assert parts["edge"] == pytest.approx(3 * np.abs(edges).mean(), rel=1e-3)


def test_restorations_teach_no_kinds_of_damage():
    """Their records are empty because nobody knows what was done, not because nothing was."""
    heads, tokens = DenseHeads(8), torch.randn(2, 1, 1, 8)
    rest = {"quality": torch.zeros(2, 1, 1), "bands": torch.zeros(2, 1, 1, 3 * NUM_BANDS), "whole": None}
    kinds, labels, known = torch.zeros(2, 1, 1, len(KINDS)), torch.zeros(2), torch.tensor([True, False])
    both = heads.loss(tokens, Targets(kinds=kinds, labels=labels, known_kinds=known, **rest))[1]["kinds"]
    with torch.no_grad():
        alone = torch.nn.functional.softplus(heads.kinds(tokens[0])).mean()  # the cross-entropy of "no"
    assert both == pytest.approx(0.3 * float(alone), rel=1e-5)


def test_training_reads_ratings_as_inference_does(builder, model):
    """`RatingTree` and `leaf_logprobs`, which rates for users, on the same image: the same 401 log-probabilities."""
    from train_iqa.nano.build import build_image_processor

    protocol = nano_protocol()
    processor = build_image_processor(protocol.min_pixels, protocol.max_pixels)
    checkpoint = Checkpoint(name="toy", model=model, tokenizer=builder.tokenizer, image_processor=processor,
                            protocol=protocol, source=None, commit=None, adapter=None, quantization=None)  # fmt: skip
    image, question = torch.rand(3, 84, 140, generator=torch.Generator().manual_seed(0)), protocol.questions[0]
    row = make_row(checkpoint, round1(protocol, image, question))
    with torch.no_grad():
        wanted = leaf_logprobs(checkpoint, trie_of(checkpoint), [row])
        found = RatingTree(model, builder).logprobs(torch.stack([image, image]), question)
    assert found.shape == (2, 401)
    assert torch.allclose(found[0], wanted[0].float(), atol=0.15)  # bfloat16 against float32
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_the_loss_of_ratings_is_least_at_the_labels(builder, model):
    tree, labels = RatingTree(model, builder), torch.tensor([2.0, 4.0])
    right = (bell(tree.ratings, labels, 0.2) + 1e-12).log()
    loss, parts = tree.loss(right, labels, sigma=0.2, ranked=True)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
    assert parts["error"] < 0.01
    assert tree.loss(right.flip(0), labels, sigma=0.2, ranked=True)[0] > 5


def test_pair_loss_by_hand():
    """Labels 0.3 apart: chance 1 / (1 + e^-1) = 0.731; at equal ratings the loss is ln 2, its least 0.582."""
    loss = pair_loss(torch.tensor([3.0, 3.0]), torch.tensor([3.3, 3.0]))
    assert float(loss) == pytest.approx(0.6931 - 0.5822, abs=1e-3)


def test_muon_steps_are_orthogonal_and_of_one_size():
    matrices = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 9]).view(
        3, 1, 1
    )
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert orthogonalised(matrices.mT).shape == (3, 16, 32)


def toy_step(optimizer, layer, value):
    loss = (layer(torch.ones(1, 4)) * value).sum()
    loss.backward()
    return optimizer.step(1e-2)


def blocks():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})


def test_two_steps_of_the_optimizer_by_hand():
    """Muon with Nesterov's momentum on the block, at four times the rate and with AdamW's size; AdamW on the bias."""
    torch.manual_seed(0)
    layer = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(6, 4)])})["blocks"][0]
    named = [("blocks.0.weight", layer.weight), ("blocks.0.bias", layer.bias)]
    optimizer, rate, decay = SplitOptimizer(named, weight_decay=0.1), 1e-2, 0.1
    weight, bias, momentum = layer.weight.detach().clone(), layer.bias.detach().clone(), torch.zeros(4, 6)
    mean = square = torch.zeros(4)
    for step in (1, 2):
        gradients = [torch.randn(4, 6), torch.randn(4)]
        layer.weight.grad, layer.bias.grad = (gradient.clone() for gradient in gradients)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert float(optimizer.step(rate, max_norm=0.5)) == pytest.approx(float(norm), rel=1e-5)
        assert layer.weight.grad is layer.bias.grad is None
        slope, tilt = (gradient * 0.5 / norm for gradient in gradients)
        momentum = 0.95 * momentum + 0.05 * slope
        update = orthogonalised((0.05 * slope + 0.95 * momentum)[None])[0]
        weight = weight * (1 - 4 * rate * decay) - 4 * rate * 0.2 * 6**0.5 * update
        mean, square = 0.9 * mean + 0.1 * tilt, 0.98 * square + 0.02 * tilt**2
        size = (mean / (1 - 0.9**step)) / ((square / (1 - 0.98**step)).sqrt() + 1e-8)
        bias = bias * (1 - rate * decay) - rate * size
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-4, atol=1e-5)


def test_an_optimizer_goes_on_where_it_was_saved():
    whole, part = blocks(), blocks()
    first, second = (SplitOptimizer(list(x.named_parameters()), weight_decay=0.1) for x in (whole, part))
    toy_step(first, whole["blocks"][0], 1.0)
    toy_step(second, part["blocks"][0], 1.0)
    again = SplitOptimizer(list(part.named_parameters()), weight_decay=0.1)
    again.load_state_dict(second.state_dict())
    toy_step(first, whole["blocks"][0], 0.5)
    toy_step(again, part["blocks"][0], 0.5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_a_step_that_is_not_finite_changes_nothing():
    layer = blocks()
    before = [one.clone() for one in layer.parameters()]
    optimizer = SplitOptimizer(list(layer.named_parameters()), weight_decay=0.1)
    assert not torch.isfinite(toy_step(optimizer, layer["blocks"][0], float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_averaged_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer.parameters(), share=0.25)
    for value in (2.0, 6.0):
        layer.weight.data.fill_(value)
        average.update()
    average.apply()
    assert layer.weight.item() == 3.0


def test_a_mirrored_box():
    assert mirrored(LOCAL).box == pytest.approx((0.0, 0.5, 0.5, 0.9))
    assert mirrored(EVEN) == EVEN
