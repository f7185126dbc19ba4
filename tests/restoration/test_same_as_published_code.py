"""What is said to follow a published implementation gives its numbers: sampler steps, the NFT loss, PSNR on luma."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from restoration.metrics import psnr_y
from restoration.tuning.algorithms.nft import implicit_policies, nft_loss, nft_share, scaled_error
from restoration.tuning.sampler.parametrisation import to_x0
from restoration.tuning.sampler.transitions import Schedule, transition


def drawn(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("offset", "one"), [(0, True), (1, False)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_ddim_step_is_that_of_diffusers_whatever_the_spacing(spacing, offset, one, prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing=spacing,
                              steps_offset=offset, set_alpha_to_one=one)  # fmt: skip
    path = Schedule(scheduler).path(13)
    scheduler.set_timesteps(13)
    [x] = drawn(1, 2, 3, 4, 4)
    for index, time in enumerate(scheduler.timesteps):
        output, noise = drawn(2, 2, 3, 4, 4, seed=1 + index)
        theirs = scheduler.step(output, time, x, eta=0.7, variance_noise=noise).prev_sample
        assert torch.allclose(transition(path, index, output, x, eta=0.7, noise=noise).sample, theirs, atol=1e-4)
        x = theirs


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_nft_loss_is_that_of_its_authors_with_their_factor(beta):
    """NVlabs/DiffusionNFT, scripts/train_nft_sd3.py: the policy loss, times the clip of the advantages."""
    x0, noise, now, old = drawn(4, 4, 3, 8, 8)
    sigma = torch.tensor([0.1, 0.4, 0.6, 0.9]).reshape(-1, 1, 1, 1)
    x_t, clip, advantage = (1 - sigma) * x0 + sigma * noise, 5.0, torch.tensor([-7.0, -1.0, 2.0, 9.0])
    share = torch.clamp(advantage.clamp(-clip, clip) / clip / 2.0 + 0.5, 0, 1)
    losses = []
    for output in (beta * now + (1 - beta) * old, (1.0 + beta) * old - beta * now):
        prediction = x_t - sigma * output
        weight = (prediction.double() - x0.double()).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=0.00001)
        losses.append(((prediction - x0) ** 2 / weight).mean(dim=(1, 2, 3)))
    theirs = (share * losses[0] / beta + (1.0 - share) * losses[1] / beta) * clip
    level = sigma.flatten()
    errors = [scaled_error(to_x0("flow", one, x_t, 1 - level, level), x0) for one in implicit_policies(now, old, beta)]
    ours = nft_loss(nft_share(advantage.clamp(-clip, clip), clip), *errors, beta, clip)
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-4)


def test_psnr_is_on_the_luma_of_bt601_of_eight_bits_without_its_border():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 40, 50, generator=generator)
    noisy = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    luma = [
        (one.mul(255).round().permute(1, 2, 0).numpy() / 255) @ np.array([65.481, 128.553, 24.966])
        for one in (image, noisy)
    ]
    border = 4
    error = (luma[0] - luma[1])[border:-border, border:-border]
    found = psnr_y(image, noisy, border_px=border)
    assert found == pytest.approx(10 * np.log10(255**2 / (error**2).mean()), abs=1e-4)
