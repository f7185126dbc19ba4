"""Pseudo-MOS: the ends of the scale, its order, and the file."""

import numpy as np
import torch

from train_iqa.nano.labels import LABEL_METRICS, LabelScale, local_haarpsi, pseudo_mos, reference_scores


def _photo(seed=0, size=112):
    torch.manual_seed(seed)
    coarse = torch.rand(3, size // 8, size // 8)
    return torch.nn.functional.interpolate(coarse[None], size=(size, size), mode="bicubic")[0].clamp(0, 1)


def _scale():
    # HaarPSI 0..1, minus MDSI -0.6..0, VSI 0.7..1, as they really run.
    ends = {"haarpsi": (0.0, 1.0), "mdsi": (-0.6, 0.0), "vsi": (0.7, 1.0)}
    return LabelScale(knots={k: tuple(np.linspace(*ends[k], 5)) for k in LABEL_METRICS})


def test_untouched_is_five_and_more_noise_is_worse():
    photo, scale = _photo(), _scale()
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    images = [(photo + s * noise).clamp(0, 1) for s in (0.0, 0.02, 0.08, 0.3)]
    labels = pseudo_mos(images, [photo] * 4, scale)
    assert abs(labels[0] - 5) < 0.02
    assert (np.diff(labels) < -0.05).all()
    assert labels[-1] >= 1


def test_rank_is_linear_between_knots():
    """Knots 0, .25, .5, .75, 1 at quantiles 0, 1/4, .. 1: the rank of 0.6 is 0.6; outside it stays at the ends."""
    assert np.allclose(_scale().rank("haarpsi", np.array([-1.0, 0.6, 2.0])), [0, 0.6, 1])


def test_fitted_population_is_uniform_and_survives_the_file(tmp_path):
    scores = np.random.default_rng(0).normal(size=(4000, 3)).cumsum(axis=0)[:, :3]
    scale = LabelScale.fit(scores)
    ranks = scale.rank("mdsi", scores[:, 1])
    assert np.allclose(np.quantile(ranks, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    scale.save(tmp_path / "scale.json")
    assert LabelScale.load(tmp_path / "scale.json") == scale


def test_local_map_finds_the_damaged_corner():
    photo = _photo(size=168)
    image = photo.clone()
    image[:, :56, :56] = (image[:, :56, :56] + 0.3 * torch.randn(3, 56, 56)).clamp(0, 1)
    local = local_haarpsi(torch.stack([image, photo]), torch.stack([photo, photo]))
    assert local.shape == (2, 6, 6)
    assert local[0, :2, :2].max() < 0.9 < local[0, 3:, 3:].min()
    assert local[1].min() > 0.999


def test_scores_are_oriented_and_keep_the_batch_axis():
    photo = _photo()[None]
    worse = (photo + 0.2 * torch.randn(photo.shape)).clamp(0, 1)
    good, bad = reference_scores(photo, photo), reference_scores(worse, photo)
    assert good.shape == (1, 3)
    assert (good > bad).all()
