"""A folder of another run names the option that changed, not two hashes."""

import pytest
import torch
from brightness_runs import LQ, brightness, shifted
from tiny import tiny_iqa

from restoration import Restorer
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward import CompositeReward, Term, ZoomIQAReward
from zoomiqa_reward.runs.settings import AnotherRun, changes, refuse_another_run


def run(out, *, restorer=None, reward=None, **options):
    restorer = restorer or Restorer.from_pretrained(shifted)
    return best_of_n(restorer, LQ, reward or brightness(), n=2, out=out, progress=False, **options)


def mixed(weight=1.0, normalise="raw"):
    return CompositeReward([Term(brightness(), 1.0, "raw"), Term(brightness(name="again"), weight, normalise)])


CASES = {
    "seed was 0, now 1": ({}, {"seed": 1}),
    "vary_sharpness was 0.0, now 0.5": (
        {}, {"restorer": lambda: Restorer.from_pretrained(shifted, vary_sharpness=0.5)}
    ),
    "reward.mode was 'direct', now 'reason'": (
        {"reward": lambda: ZoomIQAReward(tiny_iqa())}, {"reward": lambda: ZoomIQAReward(tiny_iqa(), "reason")}
    ),
    "weight was 1.0, now 0.5": ({"reward": mixed}, {"reward": lambda: mixed(0.5)}),
    "normalise was 'raw', now 'z'": ({"reward": mixed}, {"reward": lambda: mixed(normalise="z")}),
    "fingerprint changed: other weights, code or attributes": (
        {}, {"reward": lambda: brightness(fingerprint="another version")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", CASES)
def test_the_option_that_changed_is_named(message, tmp_path):
    first, second = ({key: make() if callable(make) else make for key, make in one.items()} for one in CASES[message])
    run(tmp_path, **first)
    run(tmp_path, **first)  # the same options continue it
    with pytest.raises(AnotherRun, match="holds another run") as caught:
        run(tmp_path, **second)
    assert message in str(caught.value)


def test_equal_settings_have_no_changes():
    assert changes({"a": [1, 2]}, {"a": (1, 2)}) == []
    assert changes({"a": {}}, {"a": {}}) == []
    assert changes({}, {"a": torch.float32}) == ["a was not set, now 'torch.float32'"]


@pytest.mark.parametrize("digest", ["fingerprint", "state"])
def test_a_digest_that_changed_counts_beside_an_option_that_may_change(digest, tmp_path):
    """The start time of an evaluation always differs: it must not hide that the images did."""
    before = {"dataset": {digest: "a"}, "started": "10:00", "n": 2}
    refuse_another_run(tmp_path, before, {**before, "started": "11:00", "n": 4}, free=("started", "n"))
    with pytest.raises(AnotherRun, match=f"dataset.{digest} changed"):
        refuse_another_run(
            tmp_path, before, {**before, "dataset": {digest: "b"}, "started": "11:00"}, free=("started",)
        )


def test_options_that_only_one_run_has_are_named_first():
    """`refine` in a folder of best-of-N named three details of its restorers, and not that it is another command."""
    before = {"sources": [{"name": "nano"}, {"name": "bicubic"}], "seed": 0}
    lines = changes(before, {"sources": [{"name": "nano"}], "seed": 1, "regions": "map"})
    assert lines == [
        "regions was not set, now 'map'", "sources[1].name was 'bicubic', now not set", "seed was 0, now 1"
    ]  # fmt: skip
