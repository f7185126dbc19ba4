"""The words stage: what it learns, what it leaves, and where its labels come from."""

import copy

import numpy as np
import pytest
import torch
from nano_stages import full_store, random_learner

from train_iqa.nano import words as words_module
from train_iqa.nano.degradations import DamageRecord, Step, sample_box
from train_iqa.nano.language import RatingTree, row_tokens
from train_iqa.nano.store import cover_map
from train_iqa.nano.teach import as_float, grid_of, token_truth
from train_iqa.nano.train import NanoConfig
from train_iqa.nano.words import Reader, ReadImage, Start, WordsConfig, main, moved, words_stage, words_step

FEW = WordsConfig(first=1, local=1, short=1, second=1, kept=8, kept_whole=1)


@pytest.fixture(scope="module")
def store():
    return full_store()


@pytest.fixture
def learner():
    return random_learner()


def one_step(learner, store, config=FEW, seed=0):
    tree = RatingTree(learner.model, learner.builder)
    return words_step(learner, tree, Start(learner), Reader(learner.tower), store, config, np.random.default_rng(seed))


@pytest.mark.integration
def test_a_view_is_read_once_and_is_what_the_tower_says_of_it(learner, store, monkeypatch):
    stored = store.whole(local=True)[0]
    reader, rng = Reader(learner.tower), np.random.default_rng(3)
    seen = []
    original = words_module.varied

    def varied(one, draw):
        image, record = original(one, draw)
        seen.append((image, record))
        return image, record

    monkeypatch.setattr(words_module, "varied", varied)
    views = [reader.read(stored, rng) for _ in range(40)]
    assert len(seen) == words_module.VIEWS == len({id(view) for view in views})
    for view in views:
        ((image, record),) = [one for one in seen if one[1] is view.record and grid_of(one[0]) == view.grid]
        torch.testing.assert_close(view.tokens, row_tokens(learner.tower, [image]).detach())
        assert len(view.tokens) == len(token_truth(record, view.grid))


@pytest.mark.integration
def test_words_rate_as_direct_did_at_the_start(learner, store):
    start, stored = Start(learner), store.whole_images[0]
    with torch.no_grad():
        tree = RatingTree(learner.model, learner.builder)
        logprobs = tree.logprobs(as_float(stored.image)[None], learner.builder.protocol.questions[0])
    rated = float(logprobs.double().softmax(1)[0] @ tree.ratings.double())
    assert start.label(stored) == pytest.approx(rated, abs=1e-4)
    # At the start all that is left is the mass that is on no rating. Later weights change neither of the two.
    with torch.no_grad():
        mass = tree.logprobs(as_float(stored.image)[None], "How good?").double().exp().sum()
    before = float(start.divergence(tree, as_float(stored.image)[None], "How good?").detach())
    assert before == pytest.approx(-float(mass.log()), rel=1e-4)
    with torch.no_grad():
        learner.model.lm_head.weight.mul_(-1.5)
    assert start.relabelled([stored])[0].label == start.label(stored)
    assert start.relabelled([stored])[0].image is stored.image
    assert float(start.divergence(tree, as_float(stored.image)[None], "How good?").detach()) > before + 0.01


@pytest.mark.integration
def test_the_stage_changes_the_language_side_and_leaves_the_tower(learner, store, tmp_path):
    config = NanoConfig(photos=(), out=tmp_path, start="nano", seconds=10)
    stage = words_stage(config, FEW, learner, store)
    assert not any(parameter.requires_grad for _, parameter in learner.tower.named_parameters())
    before = copy.deepcopy(learner.model.state_dict())
    losses = stage.step(np.random.default_rng(0))
    optimizer, rate = stage.optimizers["language"]
    optimizer.step(rate)
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("visual" in name for name in changed)
    assert any("layers.4" in name for name in changed)
    assert any("layers.0" in name for name in changed)
    assert {"first_text", "first_rating", "first_box", "first_edge", "second_text"} <= set(losses)


def test_a_crop_of_a_view_has_its_own_box():
    """Tokens that say whether damage covers them are still right of the box that a crop and its mirror image have."""
    rng, grid, changed = np.random.default_rng(0), (40, 56), 0
    for _ in range(60):
        record = DamageRecord(steps=(Step(kind="jpeg", severity=0.5),), box=sample_box(rng))
        cover = torch.from_numpy(cover_map(record, *grid)).reshape(-1, 1)
        crop = moved(ReadImage(cover, grid, record), rng)
        assert crop.tokens[:, 0].tolist() == cover_map(crop.record, *crop.grid).reshape(-1).tolist()
        assert crop.tokens.mean() >= 0.02
        changed += crop.grid != grid
    assert changed > 40


@pytest.mark.integration
def test_boxes_are_learned_from_crops_and_even_damage_from_whole_views(learner, store, monkeypatch):
    grids = []
    monkeypatch.setattr(words_module, "moved", lambda view, _: grids.append(view.record.box) or view)
    one_step(learner, store, WordsConfig(first=3, local=2, short=2, second=0, kept=8, kept_whole=0))
    assert len(grids) >= 4
    assert None not in grids


@pytest.mark.integration
def test_the_bell_about_an_edge_is_wide(learner, store, monkeypatch, tmp_path):
    sigmas, original = [], words_module.rows_loss
    monkeypatch.setattr(
        words_module, "rows_loss", lambda model, builder, *rest, **more: (
            sigmas.append(builder.box_sigma) or original(model, builder, *rest, **more)
        )
    )  # fmt: skip
    words_stage(NanoConfig(photos=(), out=tmp_path, start="nano"), FEW, learner, store).step(np.random.default_rng(0))
    assert sigmas == [words_module.BOX_SIGMA] * 2
    assert learner.builder.box_sigma < words_module.BOX_SIGMA


@pytest.mark.integration
def test_a_short_row_names_box_and_rating_without_thoughts(learner, store):
    stored, rng = store.whole(local=True)[0], np.random.default_rng(1)
    grid = grid_of(stored.image)
    long, short = (learner.builder.first(stored.record, grid, 2.5, rng, short=short) for short in (False, True))
    prompt = len(learner.builder.first_prompt(learner.builder.protocol.questions[0], grid))
    text = learner.builder.tokenizer.decode(short.ids[prompt:]).replace(" ", "")
    assert text.startswith('<answer>{"bbox_2d":[')
    assert "think" not in text
    assert [number.is_box for number in short.numbers] == [True] * 4 + [False]
    assert [number.value for number in short.numbers] == [*stored.record.box, 2.5]
    assert len(short.ids) < len(long.ids)
    # An answer begins with its thoughts: a short row must not teach that it begins with the box.
    assert short.texts.min() > short.numbers[0].at
    assert long.texts.min() == prompt
    assert short.texts.max() == len(short.ids) - 1


@pytest.mark.integration
def test_direct_is_pulled_back_to_the_start(learner, store, monkeypatch):
    monkeypatch.setattr(words_module, "VIEWS", 1)
    few = WordsConfig(first=1, local=0, short=0, second=0, kept=8, kept_whole=1)
    tree, start, reader = RatingTree(learner.model, learner.builder), Start(learner), Reader(learner.tower)
    with torch.no_grad():
        learner.model.lm_head.weight.mul_(0.5)

    def gradient(weight):
        monkeypatch.setattr(words_module, "KEPT_WEIGHT", weight)
        losses = words_step(learner, tree, start, reader, store, few, np.random.default_rng(0))
        found = learner.model.lm_head.weight.grad.clone()
        learner.model.zero_grad()
        return found, losses["kept"]

    gradient(0.0)  # later steps draw no new view, so they draw alike
    (with_pull, kept), (without, _) = gradient(4.0), gradient(0.0)
    pull = with_pull - without
    assert float(pull.norm()) > 0
    # A step against the pull alone brings `direct` nearer to the start.
    with torch.no_grad():
        learner.model.lm_head.weight.sub_(0.002 * pull / pull.norm() * learner.model.lm_head.weight.norm())
    assert gradient(0.0)[1] < kept


@pytest.mark.integration
def test_in_bfloat16_the_losses_are_nearly_those_of_float32(learner, store, tmp_path):
    config, found = NanoConfig(photos=(), out=tmp_path, start="nano", seconds=10), []
    for half in (False, True):
        stage = words_stage(config, WordsConfig(first=1, local=1, short=1, second=1, bfloat16=half), learner, store)
        found.append(stage.step(np.random.default_rng(1)))
        learner.model.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert found[0] != found[1]
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.1, abs=0.02), name


@pytest.mark.parametrize(
    "wrong", [["--seconds", "0"], ["--seconds", "nan"], ["--learning-rate", "-1"], ["--threads", "0"]]
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, wrong, capsys):
    code = main(["--start", "nano", "--photos", str(tmp_path), "--out", str(tmp_path / "run"), *wrong])
    assert code == 1
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
