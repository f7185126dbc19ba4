"""Our distance stands where `lpips.LPIPS` stands: the same call, shape and range, beside the real one."""

import math
import warnings

import pytest
import torch
from photographs import photograph
from tiny import tiny_checkpoint, tiny_iqa

from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.integrations.lpips import ZoomIQADistance
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


@pytest.fixture(scope="module")
def pair():
    """Two photographs, and each under a blur that changes its rating, as LPIPS wants them: in [-1, 1]."""
    clean = torch.stack([photograph(seed, 96, 96) for seed in range(2)])
    return 2 * gaussian_blur(clean, 1.5).clamp(0, 1) - 1, 2 * clean - 1


def test_value_shape_and_range(pair):
    output, reference = pair
    distance = ZoomIQADistance(tiny_iqa())
    found = distance(output, reference)
    ratings = [ZoomIQAReward(tiny_iqa())((batch + 1) / 2).value for batch in pair]
    assert found.flatten().tolist() == pytest.approx(((ratings[1] - ratings[0]).clamp(min=0) / 4).tolist(), abs=1e-6)
    assert found.shape == (2, 1, 1, 1)
    assert torch.equal(distance((output + 1) / 2, (reference + 1) / 2, normalize=True), found)
    assert not distance(reference, reference).any()
    backwards = distance(reference, output).flatten()
    assert ((found.flatten() > 0) != (backwards > 0)).all()  # one of the two looks worse, and only that one is behind


def test_the_same_call_as_the_real_one(pair):
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    ours = ZoomIQADistance(str(tiny_checkpoint()), device="cpu")
    for options in ({}, {"normalize": True}, {"retPerLayer": False}):
        batch = [(one + 1) / 2 for one in pair] if options.get("normalize") else pair
        assert ours(*batch, **options).shape == theirs(*batch, **options).shape
    assert not list(ours.parameters())


def test_the_gradient_goes_to_what_is_behind(pair):
    distance = ZoomIQADistance(tiny_iqa())
    gaps = distance(*pair).flatten()
    behind = (pair[0] if gaps[0] > 0 else pair[1]).clone().requires_grad_(True)
    ahead = pair[1] if gaps[0] > 0 else pair[0]
    distance(behind, ahead).sum().backward()
    assert behind.grad[0].any()
    with torch.no_grad():
        assert not distance(behind, ahead).requires_grad
    outside = (1.2 * behind.detach()).requires_grad_(True)
    distance(outside, ahead).sum().backward()
    assert torch.isfinite(outside.grad).all()


def test_failures(pair):
    distance = ZoomIQADistance(tiny_iqa())
    blank = torch.zeros_like(pair[0])
    assert distance(blank, pair[1]).isnan().all()
    assert math.isnan(distance(pair[0], blank)[0].item())
    with pytest.raises(ValueError, match="retPerLayer"):
        distance(*pair, retPerLayer=True)
    with pytest.raises(ValueError, match="two BCHW batches"):
        distance(pair[0][:1], pair[1])
