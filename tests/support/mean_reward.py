"""The reward that integrations are tested with: the mean of the image and of all that is given with it."""

from zoomiqa_reward.rewards.metric import MetricReward


def mean_reward(**options):
    fn = options.pop("fn", lambda image, **given: image.mean() + sum(float(one.mean()) for one in given.values()))
    return MetricReward(fn, "mean", True, (0, 9), fingerprint="v1", **options)
