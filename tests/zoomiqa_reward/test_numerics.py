"""Nothing that is switched on around a rating changes its bits, and everything outside is as it was afterwards."""

import contextlib
import sys
import threading

import pytest
import torch
from ambient import AMBIENT, flag
from tiny import make_image, tiny_iqa

from zoomiqa_reward import MetricReward, ZoomIQAReward
from zoomiqa_reward.model.numerics import SETTINGS, callers_precision, canonical_numerics
from zoomiqa_reward.rewards.base import ask
from zoomiqa_reward.rewards.cached import CachedReward
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.robust import RobustReward


def settings():
    return [one.now() for one in SETTINGS]


def products():
    """What autocast, default dtype and default device act on."""
    rows = torch.linspace(0, 1, 12).view(3, 4)
    return [rows @ rows.T, torch.tensor([0.1, 0.7]), torch.arange(3) / 7, torch.tensor(3) * 0.1, torch.full((2,), 0.3),
            torch.rand(3, generator=torch.Generator().manual_seed(0)), torch.arange(0, 1, 0.3), torch.eye(2),
            torch.nn.functional.conv2d(rows[None, None], rows[None, None, :2, :2]), torch.arange(4).sqrt()]  # fmt: skip


def equal(one, other):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", AMBIENT)
def test_operations_give_the_same_bits_inside(name):
    with canonical_numerics():
        plain = products()
    before = settings()
    with AMBIENT[name]():
        outside, around = settings(), (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
        with canonical_numerics():
            assert all(one.holds() for one in SETTINGS)
            found = products()
        assert settings() == outside
        assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == around
    assert equal(found, plain)
    assert settings() == before


def test_the_test_sees_what_autocast_and_default_dtype_do():
    plain = products()
    for name in ("autocast_bfloat16", "default_float64", "default_bfloat16"):
        with AMBIENT[name]():
            assert not equal(products(), plain), name
    with AMBIENT["flush_denormal"]():
        assert sys.float_info.min / 2 == 0
        with canonical_numerics():
            assert sys.float_info.min / 2 > 0
        assert sys.float_info.min / 2 == 0


def test_gpu_settings_are_full_precision_inside_and_come_back():
    """By code: what a GPU would see. TF32 through its old name, which writes several new ones."""
    matmul, cudnn, before = torch.backends.cuda.matmul, torch.backends.cudnn, settings()
    with flag(matmul, "allow_tf32", True)(), flag(cudnn, "benchmark", True)():
        outside = settings()
        with canonical_numerics(), canonical_numerics():
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (False, False, False)
            assert cudnn.deterministic
        assert settings() == outside
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, True, True)
    assert settings() == before


def test_autocast_that_is_switched_on_again_inside_is_off_one_level_deeper():
    rows = torch.linspace(0, 1, 12).view(3, 4)
    with canonical_numerics(), torch.autocast("cpu", torch.bfloat16):
        with canonical_numerics():
            assert (rows @ rows.T).dtype == torch.float32
        assert (rows @ rows.T).dtype == torch.bfloat16


def test_a_setting_that_another_thread_changes_is_an_error_and_stands():
    other = threading.Thread(target=lambda: setattr(torch.backends.cudnn, "benchmark", True))

    def measure():
        with canonical_numerics():
            other.start(), other.join()

    try:
        with pytest.raises(RuntimeError, match=r"cudnn\.benchmark was changed while a value"):
            measure()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False


def test_threads_inside_at_once_put_back_what_was_there():
    before, inside = settings(), threading.Barrier(4)

    def work():
        for _ in range(20):
            with canonical_numerics():
                inside.wait()

    with AMBIENT["matmul_medium"]():
        outside = settings()
        threads = [threading.Thread(target=work) for _ in range(4)]
        [one.start() for one in threads], [one.join() for one in threads]
        assert settings() == outside
    assert settings() == before


def test_the_callers_precision_keeps_the_processs_settings_alone():
    with AMBIENT["matmul_medium"](), AMBIENT["autocast_bfloat16"](), AMBIENT["default_float64"]():
        outside = settings()
        with callers_precision():
            assert settings() == outside
            assert torch.get_float32_matmul_precision() == "medium"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def wavy(image):
    """A metric of somebody else's that says no dtype and multiplies matrices."""
    return (image[0] @ image[1].T).mean() + torch.tensor(0.1) * torch.arange(3).float().mean() / 3


def rewards(folder):
    iqa = tiny_iqa()
    direct = ZoomIQAReward(iqa)
    metric = MetricReward(wavy, "wavy", True, (-9, 99), differentiable=True)
    return {
        "direct": direct,
        "direct_batched": ZoomIQAReward(iqa, strict=False),
        "reason": ZoomIQAReward(iqa, "reason", num_samples=2),
        "metric": metric,
        "composite": CompositeReward([Term(direct, 1.0, "raw"), Term(metric, 2.0, "z")]),
        "robust": RobustReward(direct, copies=2),
        "cached": CachedReward(direct, folder / "cache.sqlite"),
    }


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    images = [make_image(i, 56, 60) for i in range(2)]
    found = {}
    for name, one in rewards(tmp_path_factory.mktemp("plain")).items():
        found[name] = one(images, lq=[make_image(9, 14, 15)] * 2)
        getattr(one, "close", lambda: None)()
    return images, found


@pytest.mark.parametrize("name", AMBIENT)
def test_rewards_give_the_same_bits_whatever_is_switched_on(name, known, tmp_path):
    (images, plain), low = known, [make_image(9, 14, 15)] * 2
    for kind, reward in rewards(tmp_path).items():
        with AMBIENT[name]():
            found = reward(images, lq=low)
        for part in ("value", "std", "valid"):
            assert torch.equal(getattr(found, part).nan_to_num(-1), getattr(plain[kind], part).nan_to_num(-1)), kind
            assert getattr(found, part).dtype == getattr(plain[kind], part).dtype
        if kind == "cached":  # what was kept inside is what would have been kept outside
            assert torch.equal(reward(images).value, plain[kind].value)
            reward.close()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["autocast_bfloat16", "autocast_float16", "default_float64", "matmul_medium"])
def test_gradients_are_those_of_full_precision(name, checkpointing):
    reward = ZoomIQAReward(tiny_iqa(), gradient_checkpointing=checkpointing)

    def gradient(context):
        leaf = make_image(3, 56, 60).requires_grad_(True)
        with context:
            value = ask(reward, [leaf], grad=True).value
        value.sum().backward()
        return leaf.grad

    plain = gradient(contextlib.nullcontext())
    assert plain.abs().sum() > 0
    assert torch.equal(gradient(AMBIENT[name]()), plain)


def test_a_compiled_step_measures_as_an_eager_one_does():
    reward = ZoomIQAReward(tiny_iqa())

    def step(image):
        return reward((0.9 * image)[None], grad=True).value.sum()

    values, gradients = [], []
    for run in (step, torch.compile(step, backend="eager")):
        image = make_image(0, 56, 60).requires_grad_(True)
        value = run(image)
        value.backward()
        values.append(value.item()), gradients.append(image.grad)
    assert values[0] == values[1]
    assert torch.equal(*gradients)


def test_what_is_recomputed_in_backward_is_computed_in_canonical_numerics_again():
    reward = ZoomIQAReward(tiny_iqa(), gradient_checkpointing=True)
    leaf = make_image(3, 56, 60).requires_grad_(True)
    value = ask(reward, [leaf], grad=True).value
    seen, layer = [], reward.iqa.checkpoint.model.get_decoder().layers[0].self_attn.q_proj
    hook = layer.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    with AMBIENT["matmul_medium"]():
        value.sum().backward()
    hook.remove()
    assert seen
    assert set(seen) == {"highest"}
