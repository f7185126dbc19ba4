"""Tuning on candidates that saw their image softer or sharper: whose they are, and what is learned of them."""

import math

import pytest
import torch
from test_tune_denoisers import nano
from test_tune_training import ALGORITHMS, examples, recipe_of, reward_of, rows_of, run

from restoration.restorer.image_io import drawn_sharpness, sharpened
from restoration.tuning import Example, TuneConfig, tune
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.pairs import read_pairs, write_pairs
from restoration.tuning.context import Tuning
from restoration.tuning.denoisers.base import denoiser_of
from restoration.tuning.lora import add_lora
from restoration.tuning.offload import Offloader
from restoration.tuning.sampler.rollout import draw_piece

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved

SEEDS = [5, 6, 7]


def detail(image):
    """How far the image is from its neighbours' mean."""
    around = torch.nn.functional.avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0]
    return (image - around).abs().mean()


def tuning(tmp_path):
    denoiser, device = denoiser_of(nano()), torch.device("cpu")
    add_lora(denoiser, 2, 2)
    reward = reward_of()
    return Tuning(
        denoiser=denoiser, reward=reward, examples=examples(1), config=TuneConfig(steps=4, crop_px=None),
        share=Offloader(denoiser.pipeline, reward, device, enabled=False), folder=tmp_path, device=device,
        autocast=torch.no_grad,
    )  # fmt: skip


def test_a_varied_candidate_is_what_the_sharper_image_leads_to_told_of_the_image_as_it_is(tmp_path):
    one, own = tuning(tmp_path), examples(1)[0]
    piece = draw_piece(one, own, SEEDS, vary_sharpness=1.0)
    assert torch.equal(piece.condition.lq, own.lq[None].expand(3, -1, -1, -1))
    images = one.denoiser.decode(piece.trajectory.x0, piece.condition)
    for image, seed in zip(images, SEEDS, strict=True):
        seen = Example(name="seen", lq=sharpened(own.lq, drawn_sharpness(seed, 1.0)), hr=own.hr)
        alone = draw_piece(one, seen, [seed])
        wanted = one.denoiser.decode(alone.trajectory.x0, alone.condition)[0]
        torch.testing.assert_close(image, wanted, atol=1e-4, rtol=0)
    plain = draw_piece(one, own, SEEDS)
    assert not torch.allclose(one.denoiser.decode(plain.trajectory.x0, plain.condition), images, atol=1e-2)
    with pytest.raises(ValueError, match="keep=False"):
        draw_piece(one, own, SEEDS, vary_sharpness=1.0, keep=True)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["nft", "dpo", "sft"])
def test_what_takes_any_images_learns_from_them_and_not_from_plain_ones(name, tmp_path):
    algorithm, changes = ALGORITHMS[name]
    rows = {}
    for vary in (0.0, 1.0):
        result = run(algorithm, tmp_path / str(vary), reward_of(detail), rounds=2, vary_sharpness=vary, **changes)
        rows[vary] = rows_of(result.folder)
        assert all(math.isfinite(row["loss"]) for row in rows[vary])
    assert rows[0.0] != rows[1.0]


@pytest.mark.parametrize("name", ["grpo", "reward_gradient"])
def test_what_learns_from_its_own_steps_refuses_them(name, tmp_path):
    algorithm, changes = ALGORITHMS[name]
    with pytest.raises(ValueError, match="vary_sharpness"):
        run(algorithm, tmp_path, vary_sharpness=0.5, **changes)


def test_an_amount_out_of_range_is_refused():
    with pytest.raises(ValueError, match="vary_sharpness"):
        recipe_of(NFT(), vary_sharpness=1.5)


def test_pairs_are_not_drawn_again_with_other_settings(tmp_path):
    run(DPO(), tmp_path / "one", rounds=1, num_samples=8, vary_sharpness=0.5)
    pairs, header = read_pairs(tmp_path / "one" / "pairs.parquet")
    assert header["drawing"]["vary_sharpness"] == 0.5
    file = write_pairs(tmp_path / "pairs.parquet", pairs, **{k: v for k, v in header.items() if k != "format"})
    recipe = recipe_of(DPO(pairs_file=file), rounds=1)
    with pytest.raises(ValueError, match="take the same settings"):
        tune(recipe, examples(), reward_of(), tmp_path / "two", validation=None, pipeline=nano(), device="cpu")
