"""Datasets: what pairs with what, the benchmarks' layouts, sizes, hashes."""

import pytest
import torch
from tiny import make_image

from restoration.degradation import degrade
from restoration.evaluation.datasets import (
    Dataset,
    DatasetItem,
    degraded_folder,
    load_preset,
    paired_folders,
    pixel_hash,
)
from zoomiqa_reward.images import load_image, save_png


def write(folder, *names, size=(16, 16), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        save_png(make_image(seed + k, *size), folder / f"{name}.png")


def test_degraded_folder_is_seeded_by_place(tmp_path):
    write(tmp_path / "hr", "b", "a", size=(98, 83))
    dataset = degraded_folder(tmp_path / "hr", "mild", seed=7)
    assert [item.name for item in dataset.items] == ["a", "b"]
    pair = dataset.load(1)
    assert pair.hr.shape == (3, 96, 80)
    assert torch.equal(pair.hr, load_image(tmp_path / "hr" / "b.png")[:, :96, :80])
    assert torch.equal(pair.lq, degrade(pair.hr, "mild", seed=8)[0])
    assert torch.equal(dataset.take(1).load(0).lq, dataset.load(0).lq)
    assert (pair.lq_sha256, pair.hr_sha256) == (pixel_hash(pair.lq), pixel_hash(pair.hr))
    prints = {degraded_folder(tmp_path / "hr", recipe, seed=seed).fingerprint for recipe, seed in
              (("mild", 7), ("mild", 8), ("bicubic", 7))}  # fmt: skip
    assert len(prints) == 3
    assert degraded_folder(tmp_path / "hr", "bicubic").is_clean
    assert not dataset.is_clean


def test_pairs_by_equal_names_first_then_without_endings(tmp_path):
    write(tmp_path / "lq", "one", "box4", "two_LR4", "three_x1", "0801x4", "box1")
    write(tmp_path / "hr", "one", "box4", "two_HR", "three_x4", "0801", "box1_HR", size=(64, 64))
    dataset = paired_folders(tmp_path / "lq", tmp_path / "hr")
    found = {item.name: item.hr.stem for item in dataset.items}
    assert found == {"one": "one", "box4": "box4", "two": "two_HR", "three": "three_x4",
                     "0801": "0801", "box1": "box1_HR"}  # fmt: skip
    assert dataset.load(0).hr.shape == (3, 64, 64)
    assert not dataset.is_clean
    write(tmp_path / "other_lq", "pix3")
    write(tmp_path / "other_hr", "pix4", size=(64, 64))
    with pytest.raises(ValueError, match=r"pix3\.png: no partner"):
        paired_folders(tmp_path / "other_lq", tmp_path / "other_hr")
    alone = paired_folders(tmp_path / "lq", None)
    assert alone.load(0).hr is None
    assert alone.load(0).hr_sha256 is None


def test_benchmark_layouts(tmp_path):
    for camera in ("Canon", "Nikon"):
        write(tmp_path / "realsr" / camera / "Test" / "4", f"{camera}_001_LR4", f"{camera}_002_LR4")
        write(tmp_path / "realsr" / camera / "Test" / "4", f"{camera}_001_HR", f"{camera}_002_HR", size=(64, 64))
    write(tmp_path / "drealsr" / "Test_x4" / "test_LR", "sony_7_x1")
    write(tmp_path / "drealsr" / "Test_x4" / "test_HR", "sony_7_x4", size=(64, 64))
    write(tmp_path / "stable" / "RealSRVal_crop128" / "test_LR", "Canon_003_LR4")
    write(tmp_path / "stable" / "RealSRVal_crop128" / "test_HR", "Canon_003_LR4", size=(64, 64))
    write(tmp_path / "stable" / "DIV2K_V2_val" / "lq", "0801_pch_00001")
    write(tmp_path / "stable" / "DIV2K_V2_val" / "gt", "0801_pch_00001", size=(64, 64))
    write(tmp_path / "classic" / "Set5", "baby", size=(80, 80))
    names = {
        ("realsr", "realsr"): ["Canon_001", "Canon_002", "Nikon_001", "Nikon_002"], ("drealsr", "drealsr"): ["sony_7"],
        ("stablesr-realsr", "stable"): ["Canon_003_LR4"], ("stablesr-div2k", "stable"): ["0801_pch_00001"],
        ("set5", "classic"): ["baby"], ("set5", "classic/Set5"): ["baby"],
    }  # fmt: skip
    for (preset, root), expected in names.items():
        dataset = load_preset(preset, tmp_path / root)
        assert [item.name for item in dataset.items] == expected
        pair = dataset.load(0)
        assert pair.hr.shape[1] == 4 * pair.lq.shape[1]
    with pytest.raises(ValueError, match="must hold the folders DrealSRVal_crop128/test_LR"):
        load_preset("stablesr-drealsr", tmp_path / "stable")
    with pytest.raises(ValueError, match="laid out for x4"):
        load_preset("realsr", tmp_path / "realsr", scale=2)
    with pytest.raises(ValueError, match="must be among set5"):
        load_preset("set6", tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    write(tmp_path / "lq", "a", "b")
    write(tmp_path / "hr", "a", size=(16, 16))
    with pytest.raises(ValueError, match=r"b\.png: no partner"):
        paired_folders(tmp_path / "lq", tmp_path / "hr")
    write(tmp_path / "hr", "b_HR", "b_x4")
    with pytest.raises(ValueError, match=r"2 partners \(b_HR\.png, b_x4\.png\)"):
        paired_folders(tmp_path / "lq", tmp_path / "hr")
    (tmp_path / "hr" / "b_x4.png").unlink()
    with pytest.raises(ValueError, match="at x4 is 64 x 64, but the high-quality image has 16 x 16"):
        paired_folders(tmp_path / "lq", tmp_path / "hr").load(0)
    with pytest.raises(ValueError, match="no such folder"):
        degraded_folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        degraded_folder(tmp_path / "empty")
    path = tmp_path / "lq" / "a.png"
    with pytest.raises(ValueError, match="two items are called 'a'"):
        Dataset(name="twice", items=(DatasetItem(name="a", lq=path), DatasetItem(name="a", lq=path)))
    with pytest.raises(ValueError, match="need a degradation"):
        Dataset(name="how", items=(DatasetItem(name="a", hr=path),))
