"""Factories for `package.module:factory`: the mean of an image and of its source, or of its reference."""

from mean_reward import mean_reward


def with_source():
    return mean_reward(needs=("lq",))


def with_reference():
    return mean_reward(needs=("hr",))
