"""The score cache: right values, no lost update between real processes, bounded, and nothing kept that must not be."""

import math
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny import make_image, tiny_iqa

from zoomiqa_reward.images import save_png
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.cached import CachedReward, CacheError
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.score_store import MIN_BYTES, ScoreStore
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


class Counting:
    """The mean of the image plus what else is given; counts how many images it was asked for."""

    def __init__(self, name="mean", fingerprint="v1", **options):
        self.asked = 0
        self.options = {"higher_is_better": True, "score_range": (0, 9), "fingerprint": fingerprint} | options
        self.name = name

    def __call__(self, image, **given):
        self.asked += 1
        extra = sum(len(item) if isinstance(item, str) else float(item.mean()) for item in given.values())
        return float(image.mean()) + extra

    def reward(self):
        return MetricReward(self, self.name, **self.options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.sqlite"


def images(count, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(count, 3, side, side, generator=generator))


def test_values_come_back_bit_for_bit_without_asking_again(path):
    plain = ZoomIQAReward(tiny_iqa())
    batch = [make_image(seed, 60, 70) for seed in range(3)]
    expected = plain(batch)
    with CachedReward(plain, path) as reward:
        assert isinstance(reward, Reward)
        first, again = reward(batch), reward(batch)
    with CachedReward(plain, path) as reopened:
        later = reopened(batch[::-1])
    for found in (first, again):
        assert torch.equal(found.value, expected.value)
        assert torch.equal(found.std, expected.std)
    assert torch.equal(later.value.flip(0), expected.value)
    assert first.info["cache"] == {"hits": 0, "misses": 3, "failures": 0, "hit_rate": 0.0}
    assert again.info["cache"] == later.info["cache"] == {"hits": 3, "misses": 0, "failures": 0, "hit_rate": 1.0}


def test_any_form_of_the_same_pixels_hits(path, tmp_path):
    metric = Counting()
    image = (make_image() * 255).round() / 255
    file = save_png(image, tmp_path / "image.png")
    with CachedReward(metric.reward(), path) as reward:
        found = reward([image, file, image.double(), image.clone().requires_grad_(True)])
        assert metric.asked == 1
        assert found.info["cache"]["hits"] == 3
        save_png(1 - image, file)  # the same name, other pixels
        assert reward(file).value.item() == pytest.approx(float((1 - image).mean()), abs=3e-3)
        assert metric.asked == 2
        assert reward.stats.hit_rate == pytest.approx(3 / 5)
        assert reward.stats.entries == 2


def test_whatever_could_change_the_value_changes_the_key(path):
    image = images(1)[0]
    a, b = images(2, side=4, seed=1)
    variants = [
        ({}, {}), ({"lq": [a]}, {"needs": ("lq",)}), ({"lq": [b]}, {"needs": ("lq",)}),
        ({"hr": [a]}, {"needs": ("hr",)}),
        ({"prompts": ["x"]}, {"needs": ("prompts",)}), ({"prompts": ["xy"]}, {"needs": ("prompts",)}),
        ({}, {"fingerprint": "v2"}), ({}, {"name": "other"}),
    ]  # fmt: skip
    seen = []
    for given, options in variants:
        metric = Counting(**options)
        with CachedReward(metric.reward(), path) as reward:
            seen.append(reward(image, **given).value.item())
            assert reward.stats.hits == 0, (given, options)
            assert reward(image, **given).value.item() == seen[-1]
            assert metric.asked == 1
    assert len(set(seen)) == 5  # hr counts as lq does, the last two answer as the first: under keys of their own
    wide = image.reshape(3, 4, 16)
    with CachedReward(Counting().reward(), path) as reward:
        reward(wide)
        assert reward.stats.hits == 0


def test_modes_and_strictness_do_not_share(path):
    keys = set()
    for options in ({}, {"strict": False}, {"mode": "reason"}):
        with CachedReward(ZoomIQAReward(tiny_iqa(), **options), path) as reward:
            keys.add(reward.fingerprint)
            reward(make_image())
            assert reward.stats.hits == 0
    assert len(keys) == 3


def test_failures_are_not_kept(path):
    answers = iter([math.nan, 2.0])
    calls = MetricReward(lambda image: next(answers), "flaky", True, (0, 9), fingerprint="flaky")
    with CachedReward(calls, path) as reward:
        first = reward(images(1))
        assert first.valid.tolist() == [False]
        assert "flaky returned nan" in first.info["errors"][0]
        assert reward.stats.entries == 0
        assert reward(images(1)).value.tolist() == [2.0]
        found = reward(["no-such-file.png", *images(1)])
        assert found.valid.tolist() == [False, True]
        assert "no-such-file.png" in found.info["errors"][0]
        stats = reward.stats
        assert (stats.hits, stats.misses, stats.failures) == (1, 1, 2)


def test_gradients_pass_through_and_leave_no_trace(path):
    differentiable = MetricReward(lambda image: image.mean(), "m", True, (0, 1), differentiable=True)
    image = images(1)[0].requires_grad_(True)
    with CachedReward(differentiable, path) as reward:
        assert reward.differentiable
        reward(image, grad=True).value.sum().backward()
        assert image.grad.any()
        assert reward.stats.entries == 0
        assert reward.stats.bypassed == 1
        assert not reward(image).value.requires_grad
    with CachedReward(Counting().reward(), path) as reward, pytest.raises(ValueError, match="not differentiable"):
        reward(image, grad=True)


def test_what_no_key_can_hold_is_refused(path):
    random = MetricReward(lambda image: 1.0, "random", True, (0, 9), deterministic=False)
    with pytest.raises(ValueError, match="'random' is random"):
        CachedReward(random, path)
    group = CompositeReward([Term(Counting().reward())])
    with pytest.raises(ValueError, match="cache its terms"):
        CachedReward(group, path)
    assert CachedReward(CompositeReward([Term(Counting().reward(), 1.0, "raw")]), path)(images(1)).valid.all()
    with CachedReward(Counting(needs=("lq",)).reward(), path) as reward:
        with pytest.raises(ValueError, match="lq holds 1 for 2 images"):
            reward(images(2), lq=images(1))
        with pytest.raises(ValueError, match="needs lq="):
            reward(images(2))
        assert len(reward([])) == 0


def test_the_file_is_bounded_and_the_least_recently_used_goes(path):
    store = ScoreStore(path, max_bytes=MIN_BYTES, busy_timeout_s=5)
    kept = b"kept".ljust(32)
    store.write({kept: (1.0, math.nan)})
    sizes = []
    for _ in range(30):
        fresh = {os.urandom(32): (float(place), 0.5) for place in range(100)}
        store.write(fresh, used=[kept])
        sizes.append(store.size()[1])
    entries, size_bytes = store.size()
    assert max(sizes) == size_bytes or max(sizes) <= MIN_BYTES
    assert max(sizes) <= MIN_BYTES
    assert 200 < entries < 3001
    assert path.stat().st_size < 2 * MIN_BYTES
    assert store.read([kept]) == {kept: (1.0, pytest.approx(math.nan, nan_ok=True))}
    assert len(store.read(fresh)) == 100
    with pytest.raises(ValueError, match="max_bytes=1"):
        ScoreStore(path, max_bytes=1, busy_timeout_s=5)
    store.close()


def test_other_files_are_refused(path, tmp_path):
    path.write_text("no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(CacheError, match="no usable score cache"):
        CachedReward(Counting().reward(), path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(CacheError, match="holds something else"):
        CachedReward(Counting().reward(), other)
    with pytest.raises(CacheError, match="folder must exist"):
        CachedReward(Counting().reward(), tmp_path / "no" / "where.sqlite")


def test_a_disk_that_is_full_costs_no_value_and_a_damaged_file_is_named(path):
    metric = Counting()
    with CachedReward(metric.reward(), path) as reward:
        reward(images(500))
        with reward.store._open() as connection:
            connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.warns(UserWarning, match="new scores are not stored [(]database or disk is full[)]; make room"):
            scores = reward(images(64, seed=1))
        assert scores.valid.all()
        assert scores.info["cache"]["misses"] == 64
        assert reward.store.size()[0] >= 500  # what was there still is
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\7" * (len(whole) - 8192))
    with (
        CachedReward(metric.reward(), path) as reward,
        pytest.raises(CacheError, match=r"malformed.*give another path"),
    ):
        reward(images(1))


def test_threads_share_one_object_and_a_copy_opens_its_own(path):
    metric = Counting()
    batch = images(40)
    with CachedReward(metric.reward(), path) as reward:
        workers = [threading.Thread(target=reward, args=(batch,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert reward.stats.entries == 40
        copy = pickle.loads(pickle.dumps(reward.store))
        assert copy.size()[0] == 40
        copy.close()


WORKER = """
import sys, torch
from zoomiqa_reward.rewards.cached import CachedReward
from zoomiqa_reward.rewards.metric import MetricReward
path, start = sys.argv[1], int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
images = list(torch.rand(1000, 3, 8, 8, generator=generator))
order = [(start + k) % 1000 for k in range(1000)]
print("ready", flush=True)
sys.stdin.readline()
asked = []
fn = lambda image: asked.append(1) or image.double().mean().item()
with CachedReward(MetricReward(fn, "m", True, (0, 9), fingerprint="v1"), path) as reward:
    wrong = 0
    for k in range(0, 1000, 20):
        batch = [images[i] for i in order[k : k + 20]]
        expected = torch.tensor([image.double().mean().item() for image in batch], dtype=torch.float32)
        wrong += int((reward(batch).value != expected).sum())
    stats = reward.stats
    print(wrong, stats.hits, stats.misses, stats.entries, len(asked))
"""


@pytest.mark.integration
def test_two_processes_lose_nothing_and_hit_nothing_wrong(path):
    def start(offset):
        here = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(offset)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=here, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    both = [start(0), start(500)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:  # they open the new file, and write, at the same time
        process.stdin.write("go\n")
        process.stdin.flush()
    results = []
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        results.append([int(number) for number in out.split()])
    for wrong, hits, misses, _, asked in results:
        assert wrong == 0
        assert hits + misses == 1000
        assert asked == misses
    assert max(entries for *_, entries, _ in results) == 1000
    metric = Counting("m")
    with CachedReward(metric.reward(), path) as reward:
        found = reward(images(1000))
        assert found.info["cache"]["hit_rate"] == 1.0
        assert metric.asked == 0
