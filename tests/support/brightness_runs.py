"""Best of N with brightness as its reward, a restorer whose seed fixes how bright, and what makes runs the same."""

import numpy as np
from tiny import make_image

from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.rewards.metric import MetricReward

LQ = make_image(0, 12, 16)


def shifted(image, seed):
    """Twice as large, brighter by an amount that the seed fixes."""
    rise = float(np.random.default_rng(seed).random()) * 0.2
    return (image * 0.8).repeat_interleave(2, 1).repeat_interleave(2, 2) + rise


def mean_of(image):
    return image.mean()


def brightness(**options):
    return MetricReward(mean_of, **({"name": "brightness", "higher_is_better": True, "score_range": (0, 1)} | options))


def run(restorer=shifted, reward=None, **options):
    return best_of_n(restorer, LQ, reward or brightness(), progress=False, **({"n": 6} | options))


def summary(result):
    """What a run is about, without its clock."""
    return [
        (one.index, one.seed, one.restorer, one.source, one.score, one.cascade_score, one.valid, one.rank, one.error,
         one.pixels, one.same_as, one.prompt)
        for one in result.candidates
    ]  # fmt: skip


def same(left, right):
    return repr(summary(left)) == repr(summary(right))  # repr: NaN equals NaN


def prompted_brightness(seen):
    """Return the brightness as a reward that needs a text, which it appends to `seen`."""

    def measure(image, prompt):
        seen.append(prompt)
        return float(image.mean())

    return MetricReward(measure, "text", True, (0, 1), needs=("prompts",), fingerprint="text")
