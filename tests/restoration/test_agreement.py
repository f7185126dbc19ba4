"""Data consistency: what the step changes, what it leaves, and that every way to restore ends with it."""

import pytest
import torch
from tiny_pipelines import small_nano

from restoration.metrics.fidelity import lr_consistency
from restoration.restorer.agreement import agreeing
from restoration.restorer.restorer import Restorer
from restoration.tuning.denoisers.base import denoiser_of


def reduced(image, scale=4):
    size = [side // scale for side in image.shape[-2:]]
    return torch.nn.functional.interpolate(image, size=size, mode="bicubic", antialias=True)


@pytest.fixture
def pair():
    """A smooth input, and a restoration that is too dark and has texture of its own."""
    rng = torch.Generator().manual_seed(0)
    lq = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6, generator=rng), size=(20, 24), mode="bicubic")
    lq = lq.clamp(0.2, 0.8)
    large = torch.nn.functional.interpolate(lq, size=(80, 96), mode="bicubic", antialias=True)
    texture = 0.05 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(40, 48)
    return lq, large - 0.1 + texture, texture


def test_coarse_structure_comes_from_the_input_and_texture_stays(pair):
    lq, restored, texture = pair
    found = agreeing(restored, lq)
    assert lr_consistency(restored[0], lq[0]) < 22  # of 0.1: 20 dB, and luma's range is 219 of 255
    assert lr_consistency(found[0], lq[0]) > 40
    changed = (found - restored)[..., 8:-8, 8:-8]  # smooth: 0.1, and the same at neighbouring pixels
    assert abs(float(changed.mean()) - 0.1) < 0.01
    assert float(changed.diff(dim=3).abs().max()) < 0.1 * float(texture.max() - texture.min())


def test_what_agrees_is_left_and_noise_of_the_input_stays_out(pair):
    lq, restored, _ = pair
    same = agreeing(restored, reduced(restored))
    torch.testing.assert_close(same, restored, atol=1e-6, rtol=0)
    noise = 0.05 * torch.randn(lq.shape, generator=torch.Generator().manual_seed(1))
    taken = agreeing(restored, reduced(restored) + noise) - restored
    assert float(taken.std()) < 0.4 * float(noise.std())


def test_a_batch_is_its_rows_and_gradients_pass(pair):
    lq, restored, _ = pair
    both = agreeing(torch.cat([restored, restored.flip(3)]), torch.cat([lq, lq.flip(3)]))
    torch.testing.assert_close(both[0], both[1].flip(2), atol=1e-5, rtol=0)
    leaf = restored.clone().requires_grad_()
    agreeing(leaf, lq).sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"restoration of 9 x 8 px, input of 4 x 4 px"):
        agreeing(torch.rand(1, 3, 8, 9), torch.rand(1, 3, 4, 4))


def agreeing_nano(agreement_px=0.9):
    """Untrained, with residuals so large that they are far from their input."""
    pipe = small_nano()
    pipe.register_to_config(agreement_px=agreement_px, residual_std=0.3)
    return pipe


def test_a_pipeline_agrees_with_its_input_where_its_config_says_so(pair):
    lq, _, _ = pair
    found = []
    for pipe in (agreeing_nano(None), agreeing_nano()):
        [one] = Restorer.from_pretrained(pipe, steps=2, temperature=1.0).restore(lq[0], [3])
        found.append(lr_consistency(one.image, lq[0]))
    assert found[1] > found[0] + 6


def test_candidates_of_varied_sharpness_agree_with_the_image_that_was_given(pair):
    lq, _, _ = pair
    noisy = (lq[0] + 0.05 * torch.randn(lq[0].shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    varied = Restorer.from_pretrained(agreeing_nano(), steps=2, vary_sharpness=1.0)
    for one in varied.restore(noisy, [1, 2, 3]):
        assert abs(one.sharpness) > 0
        assert lr_consistency(one.image, noisy) > 35


def test_what_is_tuned_is_decoded_as_the_pipeline_ends(pair):
    lq, _, _ = pair
    denoiser = denoiser_of(agreeing_nano())
    condition = denoiser.encode(lq, [""], [torch.Generator().manual_seed(0)])
    x0 = torch.randn(1, *denoiser.noise_shape(condition), generator=torch.Generator().manual_seed(1))
    pipe = denoiser.pipeline
    torch.testing.assert_close(denoiser.decode(x0, condition), pipe.finished(x0, pipe.pad(lq), lq))
    assert lr_consistency(denoiser.decode(x0, condition)[0], lq[0]) > 30


def test_the_fingerprint_tells_pipelines_apart_that_end_otherwise():
    one, other = (Restorer.from_pretrained(agreeing_nano(px), steps=2).fingerprint for px in (None, 0.9))
    assert one != other
