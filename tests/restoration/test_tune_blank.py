"""A whole tuning run in which one candidate of each group shows nothing: it is the worst there, for every algorithm.

The fault is put in where it happens in practice: a decoder overflows, and the image comes out black. The reward would
like that image best, so that nothing but the rule on images without content can make it the worst.
"""

import json
import math

import pytest
import torch
from test_tune_denoisers import nano

from restoration.restorer.rng import candidate_seed
from restoration.tuning import Example, MonitorConfig, Recipe, TuneConfig, tune
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.pairs import read_pairs
from restoration.tuning.algorithms.reward_gradient import RewardGradient, away_from_nothing
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.denoisers.nano import NanoDenoiser
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.metric import MetricReward

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved

SAMPLES, IMAGES, BLANK = 4, 2, 1
"""Candidate 1 of each image is blank."""
NOTHING = "the image has no content: reduced to 64 px, its contrast is 0.0% of the range"


class Dark:
    """The darker the better: black, at 0, is the top of the scale. Keeps what it was asked about."""

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(float(image.detach().mean()))
        return -image.mean()


def examples():
    generator = torch.Generator().manual_seed(0)
    return [
        Example(name=str(k), lq=lq) for k, lq in enumerate(0.3 + 0.5 * torch.rand(IMAGES, 3, 8, 8, generator=generator))
    ]


@pytest.fixture
def broken(monkeypatch):
    """A decoder that makes one of four candidates black."""
    whole = NanoDenoiser.decode

    def decode(self, x0, condition):
        images = whole(self, x0, condition)
        if len(images) == SAMPLES:
            images = images * torch.tensor([float(k != BLANK) for k in range(SAMPLES)]).view(-1, 1, 1, 1)
        return images

    monkeypatch.setattr(NanoDenoiser, "decode", decode)


def run(algorithm, out, reward=None, **changes):
    settings = {"rounds": 1, "images_per_round": IMAGES, "num_samples": SAMPLES, "rows_at_once": SAMPLES,
                "crop_px": None, "steps": 4, "lora_rank": 2, "lora_alpha": 4, "ema_decay": 0.0,
                "max_failure_rate": 0.0}  # fmt: skip
    judge = MetricReward(reward or Dark(), "dark", True, (-1, 0), differentiable=True)
    recipe = Recipe(name="toy", source="nano", algorithm=algorithm, config=TuneConfig(**(settings | changes)),
                    reward=lambda: judge, monitor=MonitorConfig(metrics=("psnr_y",)))  # fmt: skip
    tune(recipe, examples(), judge, out, validation=None, pipeline=nano(), device="cpu")
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def seeing(kind, **settings):
    """An algorithm that keeps the rounds that it collected, and the run that it prepared for."""
    rounds, prepared = [], []

    class Seeing(kind):
        def prepare(self, tuning):
            prepared.append(tuning)
            super().prepare(tuning)

        def collect(self, tuning, number):
            found = super().collect(tuning, number)
            rounds.append(found)
            return found

    return Seeing(**settings), rounds, prepared


def test_grpo_gives_it_the_lowest_advantage(broken, tmp_path):
    algorithm, rounds, _ = seeing(GRPO, loss_steps=1)
    [row] = run(algorithm, tmp_path)
    assert (row["failed"], row["kept"]) == (0, SAMPLES * IMAGES)
    assert len(rounds[0].parts) == IMAGES
    for part in rounds[0].parts:
        _, _, advantage, kept, _ = part.loss.args
        assert kept == list(range(SAMPLES))
        assert int(advantage.argmin()) == BLANK
        assert float(advantage[BLANK]) < -1


def test_nft_counts_it_as_bad(broken, tmp_path):
    algorithm, rounds, _ = seeing(NFT)
    [row] = run(algorithm, tmp_path)
    assert (row["failed"], row["kept"]) == (0, SAMPLES * IMAGES)
    for part in rounds[0].parts:
        _, _, kept, share = part.loss.args
        assert kept == list(range(SAMPLES))
        assert int(share.argmin()) == BLANK
        assert float(share[BLANK]) < 0.5


@pytest.mark.parametrize("top", [1, 3])
def test_rejection_never_learns_it(broken, tmp_path, top):
    algorithm, rounds, _ = seeing(SFT, top=top)
    [row] = run(algorithm, tmp_path)
    assert (row["failed"], row["kept"]) == (0, SAMPLES * IMAGES)
    for part in rounds[0].parts:
        learned = part.loss.args[2]
        assert len(learned) == top
        assert BLANK not in learned


def test_rejection_learns_fewer_where_too_few_show_anything(tmp_path, monkeypatch):
    whole = NanoDenoiser.decode

    def decode(self, x0, condition):
        images = whole(self, x0, condition)
        shown = torch.arange(len(images)) < 2 if len(images) == SAMPLES else torch.ones(len(images))
        return images * shown.float().view(-1, 1, 1, 1)

    monkeypatch.setattr(NanoDenoiser, "decode", decode)
    algorithm, rounds, _ = seeing(SFT, top=3)
    run(algorithm, tmp_path)
    assert [part.loss.args[2] for part in rounds[0].parts] == [[0, 1]] * IMAGES


def test_dpo_pairs_it_as_the_loser_and_never_as_the_winner(broken, tmp_path):
    algorithm, _, prepared = seeing(DPO, share=0.25)
    run(algorithm, tmp_path)
    pairs, _ = read_pairs(tmp_path / "pairs.parquet")
    blank = {candidate_seed(prepared[0].seed(4, place), BLANK) for place in range(IMAGES)}
    assert {one.seed_loser for one in pairs} == blank
    assert not {one.seed_winner for one in pairs} & blank
    assert all(one.value_loser == 0 for one in pairs)
    assert all(one.score_loser < one.score_winner - 0.05 for one in pairs)  # by one spread, at least 5 % of the range


def test_the_gradient_counts_it_as_the_worst(broken, tmp_path):
    """Its part of the loss is that of the worst candidate less a step; the reward is not asked about it."""
    reward = Dark()
    algorithm, _, _ = seeing(RewardGradient, low_frequency=0.0)
    [row] = run(algorithm, tmp_path, reward)
    assert len(reward.seen) == IMAGES * (SAMPLES - 1)
    assert min(reward.seen) > 0.1  # never black
    assert (row["failed"], row["empty"]) == (0, IMAGES)
    scores = []
    for start in (0, SAMPLES - 1):
        own = torch.tensor([-value for value in reward.seen[start : start + SAMPLES - 1]])
        worst = own.min() - max(float(own.std(correction=0)), 0.05)
        scores += [*own.tolist(), float(worst)]
    assert row["score"] == pytest.approx(sum(scores) / len(scores), rel=1e-4)
    assert row["loss"] == pytest.approx(-sum(scores) / len(scores), rel=1e-4)  # tau is the top, 0


def test_a_round_of_nothing_but_blank_candidates_still_has_a_gradient(monkeypatch, tmp_path):
    """As missing, a policy that has blanked everything would never learn again."""
    whole = NanoDenoiser.decode
    monkeypatch.setattr(NanoDenoiser, "decode", lambda self, x0, condition: 0.5 + 0.001 * whole(self, x0, condition))
    reward = Dark()
    [row] = run(RewardGradient(low_frequency=0.0), tmp_path, reward)
    assert reward.seen == []
    assert (row["failed"], row["empty"]) == (0, SAMPLES * IMAGES)
    assert row["gradient_norm"] > 0
    assert row["loss"] == pytest.approx(0.05)


@pytest.mark.integration
@pytest.mark.parametrize("kind", [GRPO, NFT, SFT, DPO])
def test_a_crop_that_shows_nothing_teaches_nothing_and_ends_no_run(kind, tmp_path, monkeypatch):
    """An even sky among the low-quality images: a reward that refuses such images cannot rate its restorations."""

    def refusing(image):
        return math.nan if contentless(image) is not None else -float(image.mean())

    whole, sky, decoded = examples(), Example(name="sky", lq=torch.full((3, 8, 8), 0.6)), NanoDenoiser.decode

    def decode(self, x0, condition):  # a trained restorer adds no grain to a sky; this one is not trained
        images, flat = decoded(self, x0, condition), condition.lq.flatten(1).std(dim=1) < 1e-3
        return torch.where(flat.view(-1, 1, 1, 1), 0.6, images)

    monkeypatch.setattr(NanoDenoiser, "decode", decode)
    monkeypatch.setattr(f"{__name__}.examples", lambda: [*whole, sky])
    options = {"loss_steps": 1} if kind is GRPO else {}
    algorithm, rounds, _ = seeing(kind, **options)
    [row] = run(algorithm, tmp_path, refusing, images_per_round=IMAGES + 1)
    assert len(rounds[0].parts) == IMAGES
    assert {part.example.name for part in rounds[0].parts} == {one.name for one in whole}
    if kind is not DPO:
        assert (row["failed"], row["kept"], row["tied_groups"]) == (SAMPLES, SAMPLES * IMAGES, 1)


# The value that such a candidate gets, and its slope


def scores_of(values, errors):
    value = torch.tensor(values)
    return Scores(value=value, valid=~value.isnan(), std=torch.full_like(value, math.nan), errors=tuple(errors))


def test_the_slope_leads_back_to_the_scene_by_the_size_of_the_step():
    lq = 0.2 + 0.6 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.stack([torch.full((3, 32, 32), 0.5), torch.full((3, 32, 32), 0.1)]).requires_grad_()
    scores = scores_of([3.0, math.nan], [None, NOTHING])
    value = away_from_nothing(scores, images, lq, tau=5.0, width=4.0)
    assert value.tolist() == pytest.approx([3.0, 2.8])  # one value has no spread: 5 % of the range
    [slope] = torch.autograd.grad(value[1], images)
    assert not slope[0].any()
    leaf = images.detach().clone().requires_grad_()
    reduced = torch.nn.functional.interpolate(leaf[1:], size=(8, 8), mode="bicubic", antialias=True)[0]
    distance = (reduced - lq).square().mean()
    [wanted] = torch.autograd.grad(-0.2 * distance.log(), leaf)
    assert torch.allclose(slope, wanted, rtol=1e-4, atol=1e-9)


def test_following_the_slope_brings_an_empty_image_back():
    lq = 0.2 + 0.6 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = torch.zeros(1, 3, 8, 8, requires_grad=True)
    before = float((image.detach()[0] - lq).square().mean())
    for _ in range(50):
        value = away_from_nothing(scores_of([math.nan], [NOTHING]), image, lq, tau=5.0, width=4.0)
        assert float(value[0].detach()) == pytest.approx(4.8)  # below tau: the hinge has a slope
        [slope] = torch.autograd.grad(value[0], image)
        image = (image + 0.05 * slope / slope.norm()).detach().requires_grad_()
    assert float((image.detach()[0] - lq).square().mean()) < 0.8 * before


def test_what_failed_for_another_reason_stays_missing_and_others_are_left_alone():
    value = torch.tensor([3.0, math.nan], requires_grad=True)
    scores = Scores(value=value, valid=torch.tensor([True, False]), std=torch.zeros(2), errors=(None, "no answer"))
    found = away_from_nothing(scores, torch.rand(2, 3, 8, 8), torch.rand(3, 8, 8), tau=5.0, width=4.0)
    assert found is scores.value


@pytest.mark.parametrize("width", [4.0, math.inf])
def test_it_lies_below_the_hinge_even_where_all_others_lie_above(width):
    images, lq = torch.full((2, 3, 8, 8), 0.5), torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    value = away_from_nothing(scores_of([4.0, math.nan], [None, NOTHING]), images, lq, tau=2.0, width=width)
    assert float(value[1]) < 2.0
