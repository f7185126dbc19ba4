"""Several threads ask one model at once while another draws: each gets what it would get alone, and nothing is left."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ambient import AMBIENT
from skimage import data
from tiny import make_image, tiny_iqa

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.gradients import frozen
from zoomiqa_reward.model.shared_state import exclusive, shared_change
from zoomiqa_reward.rewards.cached import CachedReward


def seeded():
    random.seed(5), np.random.seed(6), torch.manual_seed(7)


def global_draws():
    return random.random(), np.random.rand(), torch.randn(1).item()


def beside(*works, at_least=30):
    """Run each work in a thread of its own while this one draws; return what they made. The draws must be as alone."""
    seeded()
    with ThreadPoolExecutor(len(works)) as pool:
        futures, drawn = [pool.submit(work) for work in works], []
        while not all(one.done() for one in futures) or len(drawn) < at_least:
            drawn.append(global_draws())
            time.sleep(0.001)
    seeded()
    assert drawn == [global_draws() for _ in drawn]
    return [one.result() for one in futures]


def bits(scores):
    """Values and deviations as texts: NaN is equal to NaN."""
    return list(map(str, scores.value.tolist())), list(map(str, scores.std.tolist()))


@pytest.fixture(scope="module")
def photo():
    return load_image(data.astronaut()[:224, :224].copy())


@pytest.mark.integration
def test_two_threads_rate_and_sample_while_the_main_thread_draws(nano, photo):
    iqa = ZoomIQA.from_pretrained(nano)
    sampled = ZoomIQAReward(iqa, "reason", num_samples=3, seed=0)
    direct = ZoomIQAReward(iqa)
    crop = photo[:, :112, :112].contiguous()
    alone = bits(sampled(photo)), bits(direct(crop)), sampled([photo]).answers[0][0].turns[0].text
    assert "nan" not in alone[0][0]
    found = beside(
        lambda: [bits(sampled(photo)) for _ in range(2)], lambda: [bits(direct(crop)) for _ in range(4)],
        lambda: sampled([photo]).answers[0][0].turns[0].text,
    )  # fmt: skip
    assert found == [[alone[0]] * 2, [alone[1]] * 4, alone[2]]


def test_prompts_of_other_lengths_in_other_threads_do_not_move_an_answers_positions():
    """Qwen-VL keeps the positions of the rows it answers on the model: the next prompt must wait."""
    iqa = tiny_iqa()
    images = [make_image(i, 60 + 40 * i, 90) for i in range(4)]
    ask = lambda image: iqa.assess(image, max_new_tokens=24, temperature=2.0, seed=1, strict=True)[0].turns[0].text  # noqa: E731
    alone = [ask(image) for image in images]
    assert len(set(alone)) == 4
    assert beside(*[lambda image=image: ask(image) for image in images]) == alone


@pytest.mark.integration
def test_sampled_answers_follow_from_seed_and_image_alone(nano, photo, tmp_path):
    """Not from the place in the call, the images beside it, `batch_size`, or what was drawn before."""
    iqa = ZoomIQA.from_pretrained(nano)
    crop, other = photo, photo[:, 112:, 112:].contiguous()

    def value(images, **options):
        found = ZoomIQAReward(iqa, "reason", num_samples=4, **({"seed": 0} | options))(images)
        return [(v, s) for v, s in zip(*bits(found), strict=True)]

    [alone] = value(crop, batch_size=4)
    assert "nan" not in alone
    for size in (1, 2, 8):
        assert value(crop, batch_size=size) == [alone]
    assert value([other, other, crop])[2] == alone
    assert value(crop, seed=1) != [alone]
    loose = value([other, crop, other, crop], strict=False)
    assert loose[1] == loose[3]
    assert value(crop, strict=False) == [loose[1]]
    rewards = [ZoomIQAReward(iqa, "reason", num_samples=4, batch_size=size) for size in (4, 2)]
    assert rewards[0].fingerprint == rewards[1].fingerprint  # which is right: the values are equal
    with CachedReward(rewards[0], tmp_path / "c") as first, CachedReward(rewards[1], tmp_path / "c") as second:
        assert bits(first(crop)) == bits(second(crop))
        assert second.stats.hits == 1


@pytest.mark.integration
def test_samples_differ_from_one_another_and_have_the_softmaxs_shares():
    from zoomiqa_reward.model.draws import RowNoise

    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    noise = RowNoise([3])
    drawn = torch.stack([noise(torch.zeros(1, 0), logits).argmax() for _ in range(20_000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    wanted = logits[0].softmax(0)
    assert shares[3] == 0
    assert ((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / len(drawn)).sqrt() + 1e-9).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_seed_the_process_decides_and_one_number_an_image_is_taken(temperature):
    iqa, image = tiny_iqa(), make_image()

    def draw():
        iqa.assess([image, image], temperature=temperature, seed=None, max_new_tokens=3, rounds=1)
        return torch.randint(2**62, ()).item()

    torch.manual_seed(3)
    taken = torch.randint(2**62, (3,))[2].item() if temperature else None
    torch.manual_seed(3)
    assert draw() == (taken if temperature else torch.randint(2**62, (), generator=torch.manual_seed(3)).item())


def test_recomputing_gradients_from_many_threads_leaves_every_layer_as_it_was():
    iqa = tiny_iqa()
    model, crop = iqa.checkpoint.model, make_image(0, 56, 60)
    reward, plain = ZoomIQAReward(iqa, gradient_checkpointing=True), ZoomIQAReward(iqa)
    model.requires_grad_(True)  # as a model that is being trained

    def state():
        flags = {name: (one.training, vars(one).get("gradient_checkpointing")) for name, one in model.named_modules()}
        return flags, [one.requires_grad for one in model.parameters()]

    def gradient(asked):
        leaf = crop.clone().requires_grad_(True)
        asked(leaf, grad=True).value.sum().backward()
        return leaf.grad

    def text():
        return iqa.assess(crop, max_new_tokens=12)[0].turns[0].text

    try:
        before, alone, said = state(), [gradient(one) for one in (reward, plain)], text()
        assert not any(one.grad is not None for one in model.parameters())
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(gradient, one) for one in (reward, plain) * 6] + [pool.submit(text) for _ in range(4)]
        found = [job.result() for job in jobs]
        assert all(torch.equal(one, alone[k % 2]) for k, one in enumerate(found[:12]))
        assert set(found[12:]) == {said}  # a layer that recomputes would have dropped the answer's cache
        assert state() == before
        assert not any(one.grad is not None for one in model.parameters())
    finally:
        model.requires_grad_(False)


def test_a_change_is_made_once_and_undone_by_the_last():
    class Owner:
        value = 0

    owner, log = Owner(), []

    def make():
        log.append("made")
        return lambda: log.append("undone")

    first = shared_change(owner, "x", make)
    first.__enter__()
    with shared_change(owner, "x", make), shared_change(owner, "y", lambda: lambda: log.append("other")):
        assert log == ["made"]
    assert log == ["made", "other"]
    first.__exit__(None, None, None)
    assert log == ["made", "other", "undone"]
    with pytest.raises(KeyError), shared_change(owner, "x", make):
        raise KeyError
    assert log[3:] == ["made", "undone"]


def test_exclusive_lets_one_thread_in_and_never_waits_for_itself_or_in_a_ring():
    one, two, inside, most = nn_pair(), nn_pair(), [], []

    def work(first, second):
        for _ in range(50):
            with exclusive(first, second), exclusive(second):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work, args=pair) for pair in ((one, two), (two, one)) * 2]
    [t.start() for t in threads], [t.join(timeout=30) for t in threads]
    assert not any(t.is_alive() for t in threads)
    assert max(most) == 1


def nn_pair():
    return torch.nn.Linear(1, 1)


def test_frozen_in_two_threads_comes_back_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    outer, inner = frozen(model), frozen(model)
    outer.__enter__(), inner.__enter__()
    outer.__exit__(None, None, None)  # the first in is the first out
    assert not any(one.requires_grad for one in model.parameters())
    inner.__exit__(None, None, None)
    assert [one.requires_grad for one in model.parameters()] == [False, False, True, True]


def test_a_thread_inside_autocast_and_one_without_rate_alike(photo, nano):
    direct = ZoomIQAReward(ZoomIQA.from_pretrained(nano))
    crop = photo[:, :112, :112].contiguous()
    alone = bits(direct(crop))

    def inside():
        with AMBIENT["autocast_bfloat16"](), torch.no_grad():
            return bits(direct(crop))

    assert beside(inside, lambda: bits(direct(crop)), at_least=1) == [alone, alone]
