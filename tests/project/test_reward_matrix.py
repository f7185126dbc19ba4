"""Every reward class through every consumer: each cell works with the right value, or is refused with a reason.

A new reward class without an entry in `REWARDS` fails here, so no wrapper can be forgotten. The table in
`docs/reward_matrix.md` is written by `PYTHONPATH=.:tests/support python tests/project/test_reward_matrix.py`.
"""

import asyncio
import importlib
import math
import pkgutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from scripted_refinement import ASKS, LQ, Scripted, grainy
from tiny import make_image, tiny_iqa
from torch import nn

import zoomiqa_reward
from restoration import evaluate, refine
from restoration.evaluation.datasets import degraded_folder
from restoration.evaluation.report import not_headline
from restoration.metrics.conditioned import ConditionedReward
from restoration.metrics.referenced import ReferencedReward
from restoration.metrics.registry import as_reward
from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.early_stop import EarlyStop
from restoration.tuning.algorithms.groups import group_advantages
from zoomiqa_reward import CachedReward, CompositeReward, ConsensusReward, MetricReward, RobustReward, Term, rank
from zoomiqa_reward.check.ladders import Pool
from zoomiqa_reward.check.probes import CheckScorer
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.integrations.ddpo import ddpo_reward
from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import GroupwiseError, Reward, ask, modules_of, optimised_names, walk
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.serving.scorer import Scorer
from zoomiqa_reward.serving.spec import RewardSpec
from zoomiqa_reward.serving.wire import ScoreItem, encode_image

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "reward_matrix.md"
LEVELS = (0.2, 0.8, 0.5)
SMALL = make_image(1, 28, 28)


class Bright(nn.Module):
    """A network that measures brightness: its one weight is what offloading has to find."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, image):
        return self.gain * image.mean()


def brightness():
    return MetricReward(Bright(), "brightness", True, (0, 1))


class FiveLines(Reward):
    name, score_range = "five-lines", (0, 1)

    def __call__(self, images, lq=None, hr=None, prompts=None):
        value = torch.stack([image.mean() for image in images])
        return Scores(value=value, valid=torch.ones(len(value), dtype=torch.bool), std=torch.zeros(len(value)))


class ForeignWrapper:
    """Somebody's wrapper that declares nothing and subclasses nothing."""

    name = fingerprint = "foreign"
    score_range, needs = (-9, 9), frozenset()
    differentiable, deterministic, higher_is_better = False, True, True

    def __init__(self, inner):
        self.inner = [inner]

    def __call__(self, images, lq=None, hr=None, prompts=None):
        return self.inner[0](images, lq=lq, hr=hr, prompts=prompts)


REWARDS = {
    "MetricReward": brightness,
    "ZoomIQAReward": lambda: ZoomIQAReward(tiny_iqa()),
    "CompositeReward, raw": lambda: CompositeReward([Term(brightness(), 2.0, "raw"), Term(FiveLines(), 0.0, "raw")]),
    "CompositeReward, normalised": lambda: CompositeReward([Term(brightness(), 1.0, "z")]),
    "CompositeReward of a normalised one": lambda: CompositeReward(
        [Term(CompositeReward([Term(brightness(), 1.0, "minmax")]), 1.0, "raw")]
    ),
    "ConsensusReward": lambda: ConsensusReward(brightness(), 1e-4),
    "RobustReward": lambda: RobustReward(brightness(), copies=1),
    "CachedReward": lambda: CachedReward(brightness(), Path(tempfile.mkdtemp()) / "scores.db"),
    "ConditionedReward": lambda: ConditionedReward(
        MetricReward(Bright(), "brightness", True, (0, 1)), lambda image, lq: 1.0, form="whole"
    ),
    "ReferencedReward": lambda: ReferencedReward(
        MetricReward(Bright(), "brightness", True, (0, 1)), lambda image, hr: 1.0
    ),
    "a subclass of five lines": FiveLines,
    "an undeclared wrapper": lambda: ForeignWrapper(brightness()),
    "an undeclared wrapper of a normalised one": lambda: ForeignWrapper(
        CompositeReward([Term(brightness(), 1.0, "z")])
    ),
}
IMAGES = [make_image(0, 56, 56) * level for level in LEVELS]


def expect_order(order):
    assert list(order) == [1, 2, 0]


def pool_restorer(image, seed):
    """x2, brightness from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return image.repeat_interleave(2, 1).repeat_interleave(2, 2) * (0.4 + 0.6 * torch.rand(1, generator=generator))


def brightest(result):
    levels = {one.index: sum(one.image.convert("L").tobytes()) for one in result.candidates}
    return max(levels, key=levels.get)


def check_pool(result, reward):
    assert all(one.valid for one in result.candidates)
    if find_model(reward) is None:
        assert result.best.index == brightest(result)
    assert len({one.score for one in result.candidates}) > 1, "a constant score chooses nothing"


def find_model(reward):
    return next((part for part in walk(reward) if isinstance(part, ZoomIQAReward)), None)


def consume_best_of_n(reward, folder):
    check_pool(best_of_n(pool_restorer, SMALL, reward, n=5, keep=5, progress=False), reward)


def consume_early_stop(reward, folder):
    result = best_of_n(pool_restorer, SMALL, reward, n=6, keep=6, early_stop=EarlyStop(min_gain=1e-9), progress=False)
    check_pool(result, reward)


def consume_cascade(reward, folder):
    first = MetricReward(lambda image: -image.mean(), "darkness", True, (-1, 0))
    result = best_of_n(pool_restorer, SMALL, first, n=5, keep=5, cascade=Cascade(reward=reward, top=3), progress=False)
    asked = [one for one in result.candidates if not math.isnan(one.cascade_score)]
    assert len(asked) == 3
    if find_model(reward) is None:
        levels = {one.index: sum(one.image.convert("L").tobytes()) for one in asked}
        assert result.best.index == max(levels, key=levels.get)


def consume_refine(reward, folder):
    result = refine(grainy, LQ, reward, assessor=Scripted(ASKS), rounds=1, min_gain=0.0, progress=False)
    assert all(attempt.valid for one in result.history for attempt in one.attempts)


def others(reward):
    """Return the other images that a ranking gives the reward: one for all."""
    groups = {"lq"} if "wrapper" in type(reward).__name__.lower() else set()  # it takes no groups but by lq
    return {key: {"lq": SMALL, "hr": IMAGES[0]}[key] for key in ("lq", "hr") if key in reward.needs | groups}


def consume_rank(reward, folder):
    ranking = rank(reward, IMAGES, **others(reward))
    if find_model(reward) is None:
        expect_order(ranking.order)


def consume_cache(reward, folder):
    with CachedReward(reward, folder / "scores.db") as cached:
        given = {key: [image] * 3 for key, image in others(reward).items()}
        first, again = cached(IMAGES, **given).value, cached(IMAGES, **given)
        assert torch.equal(first, again.value)
        assert again.info["cache"]["hits"] == 3


def consume_server(reward, folder):
    this = sys.modules[__name__]
    this.served = lambda: reward
    before = torch.get_num_threads()
    scorer = Scorer(RewardSpec(reward=f"{__name__}:served"), threads=before)
    try:
        item = ScoreItem(image=encode_image(IMAGES[1]), lq=encode_image(SMALL), hr=encode_image(IMAGES[0]), prompt="")
        [answer] = asyncio.run(scorer.score([item], batched=False))
        assert answer.row.valid
        assert set(scorer.describe()["labels"]) == optimised_names(reward)
    finally:
        scorer.close()


def consume_check(reward, folder):
    pool = Pool(name="pool", hr=IMAGES[0], lq=SMALL, ladders={}, worsened={})
    values = CheckScorer(reward)(IMAGES, pool)
    if find_model(reward) is None:
        assert values[1] > values[2] > values[0]


def consume_evaluate(reward, folder):
    photos = folder / "photos"
    photos.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_png(torch.rand(3, 112, 112, generator=generator), photos / "a.png")
    data = degraded_folder(photos, "bicubic", scale=2)
    found = evaluate(Restorer.from_pretrained(pool_restorer), data, ["psnr_y"], n=2, reward=reward)
    rows = [one for one in found.records if one.row == "candidate"]
    assert len(rows) == 2
    assert all(math.isfinite(one.reward) for one in rows)


def consume_ddpo(reward, folder):
    fn = ddpo_reward(reward)
    value, _ = fn(torch.stack(IMAGES), ["", "", ""], [{"lq": SMALL, "hr": IMAGES[0]}] * 3)
    if find_model(reward) is None:
        assert value[1] > value[2] > value[0]


def consume_torchmetrics(reward, folder):
    metric = ZoomIQAMetric(reward)
    metric.update(IMAGES, [IMAGES[0]] * 3, lq=[SMALL] * 3)
    assert math.isfinite(metric.compute())


def consume_tuning(reward, folder):
    scores = ask(reward, IMAGES, lq=[SMALL] * 3, hr=[IMAGES[0]] * 3, prompts=["", "", ""], groups=["a"] * 3)
    advantages = group_advantages(scores, ["a"] * 3, score_range=reward.score_range)
    if find_model(reward) is None:
        assert advantages.value[1] > 0 > advantages.value[0]


def consume_guard(reward, folder):
    """The monitor and the report know every metric inside: a reward's own and its labels'."""
    inner = {name for part in walk(reward) for name in (part.name.lower(), *getattr(part, "labels", ()))}
    assert inner == optimised_names(reward)
    if (model := find_model(reward)) is not None:
        assert set(model.iqa.protocol.label_metrics) <= optimised_names(reward)
    else:
        assert optimised_names(reward) & {"brightness", "five-lines"}
    wrapped = ForeignWrapper(RobustReward(as_reward("niqe")))
    assert "niqe" in optimised_names(wrapped)
    assert "niqe" in not_headline(wrapped)


def consume_offload(reward, folder):
    modules = modules_of(reward)
    assert len(modules) == len({id(module) for module in modules})
    if not isinstance(reward, FiveLines):
        assert modules


CONSUMERS = {
    "best-of-N": consume_best_of_n,
    "early stop": consume_early_stop,
    "cascade": consume_cascade,
    "refine": consume_refine,
    "rank": consume_rank,
    "tuning": consume_tuning,
    "DDPO, Flow-GRPO": consume_ddpo,
    "cache": consume_cache,
    "server": consume_server,
    "check": consume_check,
    "evaluate": consume_evaluate,
    "torchmetrics": consume_torchmetrics,
    "label guard": consume_guard,
    "offload": consume_offload,
}
WITHOUT_REFERENCE = {"best-of-N", "early stop", "cascade", "refine"}
"""They restore images whose clean version nobody has."""
STAND_ALONE = {"DDPO, Flow-GRPO", "cache", "server", "check", "evaluate", "torchmetrics"}


def cell(reward_name, consumer_name, folder):
    """Return `yes`, or why not, in a word."""
    reward = REWARDS[reward_name]()
    try:
        CONSUMERS[consumer_name](reward, folder)
    except GroupwiseError:
        return "refused: group"
    except ValueError as error:
        if "needs hr" in str(error):
            return "refused: needs hr"
        raise
    return "yes"


def expected(reward_name, consumer_name):
    compares = "normalised" in reward_name or reward_name == "ConsensusReward"
    if compares and consumer_name in STAND_ALONE:
        return "refused: group"
    if reward_name == "ReferencedReward" and consumer_name in WITHOUT_REFERENCE:
        return "refused: needs hr"
    return "yes"


@pytest.mark.parametrize("consumer_name", CONSUMERS)
@pytest.mark.parametrize("reward_name", REWARDS)
def test_reward_through_consumer(reward_name, consumer_name, tmp_path):
    assert cell(reward_name, consumer_name, tmp_path) == expected(reward_name, consumer_name)


def test_every_reward_class_has_a_row():
    for package in ("zoomiqa_reward", "restoration", "train_iqa"):
        root = importlib.import_module(package)
        for entry in pkgutil.walk_packages(root.__path__, f"{package}."):
            if ".rewards." in entry.name or ".metrics." in entry.name or entry.name.endswith((".remote", ".rewards")):
                importlib.import_module(entry.name)

    def below(kind):
        return {kind, *(found for child in kind.__subclasses__() for found in below(child))}

    packages = ("zoomiqa_reward", "restoration", "train_iqa")
    kinds = [kind for kind in below(Reward) if kind.__module__.partition(".")[0] in packages]
    ours = {kind.__name__ for kind in kinds if not kind.__abstractmethods__}
    ours -= {"RemoteReward"}  # it is what the server consumer serves
    rows = {name.partition(",")[0].partition(" of ")[0] for name in REWARDS}
    assert ours <= rows, f"no row for {ours - rows}"
    assert zoomiqa_reward.walk is walk


def table():
    """Return the table of the guide."""
    head = "| reward | " + " | ".join(CONSUMERS) + " |\n|" + "---|" * (len(CONSUMERS) + 1) + "\n"
    return head + "".join(
        f"| {name} | " + " | ".join(expected(name, consumer) for consumer in CONSUMERS) + " |\n" for name in REWARDS
    )


def test_the_guide_shows_this_table():
    assert table() in TABLE.read_text(encoding="utf-8")


if __name__ == "__main__":
    TABLE.write_text(
        "# Which reward works where\n\n"
        "Every reward class goes through every consumer in `tests/project/test_reward_matrix.py`. The same file writes "
        "this\ntable: `PYTHONPATH=.:tests/support python tests/project/test_reward_matrix.py`. A reward that compares "
        "images within a\ngroup works where a whole group is there. It is refused where each value must stand "
        "alone.\n\n" + table(),
        encoding="utf-8",
    )
