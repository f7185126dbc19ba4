"""What restorers are evaluated on: pairs of folders, folders that are degraded here, and the usual benchmarks' layouts.

Nothing is fetched: a preset knows how a benchmark's folders are laid out below the root given. Files pair by equal
names, or by names that are equal after the endings that tell low from high quality (`_LR4`, `_HR`, `_x1`, `_x4`, and
of low quality `0801x4`) are taken off.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from restoration.degradation.pipeline import degrade
from restoration.degradation.presets import Degradation, find_preset
from zoomiqa_reward.images.listing import list_images
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.runs.digest import digest, file_digest
from zoomiqa_reward.whole_numbers import whole_numbers

_ENDING = re.compile(r"_((LR|HR|gt|lq)\d?|x\d)$", re.IGNORECASE)
_LOW_ENDING = re.compile(rf"{_ENDING.pattern}|(?<=\d)x\d$", re.IGNORECASE)
DEGRADED = ("set5", "set14", "urban30", "bsd100", "urban100", "manga109", "div2k")
"""Presets that are folders of high-quality images, degraded here. Any other folder: `degraded_folder`."""
LAYOUTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    # preset -> (folder of low quality, folder of high quality, what ends the low-quality files' names)
    "stablesr-div2k": (("DIV2K_V2_val/lq", "DIV2K_V2_val/gt", ""),),
    "stablesr-realsr": (("RealSRVal_crop128/test_LR", "RealSRVal_crop128/test_HR", ""),),
    "stablesr-drealsr": (("DrealSRVal_crop128/test_LR", "DrealSRVal_crop128/test_HR", ""),),
    "realsr": (("Canon/Test/4", "Canon/Test/4", "_LR4"), ("Nikon/Test/4", "Nikon/Test/4", "_LR4")),
    "drealsr": (("Test_x4/test_LR", "Test_x4/test_HR", ""),),
}
"""StableSR's test sets (Wang et al. 2024), RealSR version 3 (Cai et al. 2019; earlier versions hold low-quality files
as large as the others and are refused), DRealSR x4 (Wei et al. 2020). All x4."""
BORDERS = {"realsr": 0}
"""The published per-image PSNR and SSIM of RealSR are of whole images."""
PRESETS = (*DEGRADED, *LAYOUTS)


@dataclass(frozen=True, kw_only=True)
class DatasetItem:
    """One image to restore; at least one of the files is there."""

    name: str
    """Unique in its dataset; names the results."""
    lq: Path | None = None
    hr: Path | None = None
    """Without a low-quality file this one is degraded."""


@dataclass(frozen=True, kw_only=True)
class ImagePair:
    """An item's pixels, CHW in [0, 1]."""

    lq: Tensor
    hr: Tensor | None
    """`scale` times as large as `lq`; None where there is no ground truth."""
    lq_sha256: str
    """Of the pixels as 8-bit values."""
    hr_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images to restore, with or without ground truth."""

    name: str
    items: tuple[DatasetItem, ...]
    scale: int = 4
    degradation: Degradation | None = None
    """How items without a low-quality file are degraded."""
    seed: int = 0
    """Item k is degraded with seed + k."""
    border_px: int | None = None
    """What PSNR and SSIM cut from each side by the benchmark's convention; None: `scale`, the convention of papers."""

    def __post_init__(self) -> None:
        scale, seed = whole_numbers(scale=self.scale, seed=self.seed)  # as run.json has them
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "seed", seed)
        names = [item.name for item in self.items]
        if not names:
            raise ValueError(f"dataset {self.name!r} holds no images")
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"dataset {self.name!r}: two items are called {repeated!r}; rename one")
        if self.degradation is None and any(item.lq is None for item in self.items):
            raise ValueError(f"dataset {self.name!r}: items without a low-quality file need a degradation")

    @property
    def is_clean(self) -> bool:
        """Whether all low-quality images are pure bicubic reductions, known because they are made here."""
        clean = self.degradation is not None and self.degradation.is_clean
        return clean and all(item.lq is None for item in self.items)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the files by name and content, the scale, the degradation and its seed."""
        files = [[item.name, _file_hash(item.lq), _file_hash(item.hr)] for item in self.items]
        recipe = None if self.degradation is None else asdict(self.degradation)
        text = json.dumps([files, self.scale, recipe, self.seed if recipe else None])
        return digest(text)

    def take(self, count: int) -> "Dataset":
        """Return the first `count` items as a dataset; each is degraded as it would be in the whole."""
        return Dataset(name=self.name, items=self.items[:count], scale=self.scale, degradation=self.degradation,
                       seed=self.seed, border_px=self.border_px)  # fmt: skip

    def load(self, index: int) -> ImagePair:
        """Return an item's pixels; sides of the ground truth that the scale does not divide are cut at the far edge.

        Raises ValueError where the two files' sizes do not fit the scale, ImageError.
        """
        item = self.items[index]
        hr = None if item.hr is None else load_image(item.hr)
        if item.lq is None:
            assert hr is not None  # both were checked when the dataset was made
            assert self.degradation is not None
            height, width = (side // self.scale * self.scale for side in hr.shape[1:])
            hr = hr[:, :height, :width].contiguous()
            try:
                lq = degrade(hr, self.degradation, seed=self.seed + index, scale=self.scale)[0]
            except ValueError as error:  # too small
                raise ValueError(f"{item.hr}: {error}; leave it out, or take another degradation") from error
        else:
            lq = load_image(item.lq)
            hr = None if hr is None else _fitted(item, lq, hr, self.scale)
        return ImagePair(lq=lq, hr=hr, lq_sha256=pixel_hash(lq), hr_sha256=None if hr is None else pixel_hash(hr))


def paired_folders(lq: str | Path, hr: str | Path | None, *, scale: int = 4, name: str | None = None) -> Dataset:
    """Return the images of `lq` with those of `hr` that pair with them; without `hr` there is no ground truth.

    Raises ValueError where a low-quality image has no partner, or two.
    """
    low = _images(Path(lq))
    high = None if hr is None else _images(Path(hr))
    return Dataset(name=name or Path(lq).name, items=tuple(_paired(low, high)), scale=scale)


def degraded_folder(
    hr: str | Path, degradation: str | Degradation = "realesrgan", *, scale: int = 4, seed: int = 0,
    name: str | None = None,
) -> Dataset:  # fmt: skip
    """Return the images of a folder, to be degraded with seed, seed + 1, ... in the sorted order of their names."""
    files = _images(Path(hr))
    stems = [path.stem for path in files]
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path in files]  # a.png and a.jpg
    items = tuple(DatasetItem(name=name, hr=path) for name, path in zip(names, files, strict=True))
    recipe = find_preset(degradation)
    return Dataset(name=name or Path(hr).name, items=items, scale=scale, degradation=recipe, seed=seed)


def load_preset(
    preset: str, root: str | Path, degradation: str | Degradation = "realesrgan", *, scale: int = 4, seed: int = 0
) -> Dataset:
    """Return a benchmark found below `root`; degradation and seed count for the `DEGRADED` ones alone.

    A degraded set's images lie in `root/<preset>` or in `root` itself. Raises ValueError for an unknown preset, a
    missing folder (naming the layout), or a scale that the benchmark does not have.
    """
    root = Path(root)
    if preset in DEGRADED:
        folder = next((path for path in _children(root) if path.name.lower() == preset), root)
        return degraded_folder(folder, degradation, scale=scale, seed=seed, name=preset)
    if preset not in LAYOUTS:
        raise ValueError(f"dataset {preset!r}: must be among {', '.join(PRESETS)}, or a folder")
    if scale != 4:
        raise ValueError(f"{preset} is laid out for x4, not x{scale}")
    items: list[DatasetItem] = []
    for low, high, ending in LAYOUTS[preset]:
        if not (root / low).is_dir() or not (root / high).is_dir():
            raise ValueError(f"{preset}: {root} must hold the folders {low} and {high}")
        files = [path for path in _images(root / low) if path.stem.endswith(ending)]
        partners = [path for path in _images(root / high) if not ending or not path.stem.endswith(ending)]
        items += _paired(files, partners)
    return Dataset(name=preset, items=tuple(items), scale=scale, border_px=BORDERS.get(preset))


def pixel_hash(image: Tensor) -> str:
    """Return the sha256 of a CHW image in [0, 1]: its size, and its values as 8 bits."""
    pixels = image.detach().cpu().mul(255).add(0.5).floor().clamp(0, 255).to(torch.uint8)
    head = "x".join(str(side) for side in pixels.shape).encode()
    return hashlib.sha256(head + b":" + pixels.numpy().tobytes()).hexdigest()


def _paired(low: Sequence[Path], high: Sequence[Path] | None) -> list[DatasetItem]:
    partners: dict[str, list[Path]] = {}
    same: dict[str, list[Path]] = {}
    for path in high or []:
        partners.setdefault(_ENDING.sub("", path.stem), []).append(path)
        same.setdefault(path.stem, []).append(path)
    items = []
    for path in low:
        key = _LOW_ENDING.sub("", path.stem)
        matches = same.get(path.stem) or partners.get(key, [])
        if high is not None and len(matches) != 1:
            what = f"{len(matches)} partners ({', '.join(p.name for p in matches)})" if matches else "no partner"
            raise ValueError(f"{path}: {what} among the high-quality images; names must pair one to one")
        name = key if matches and path.stem not in same else path.stem
        items.append(DatasetItem(name=name, lq=path, hr=matches[0] if matches else None))
    return items


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file; put the images into a folder and name that" if folder.is_file() else "no such folder"
        raise ValueError(f"{folder}: {what}")
    files = list_images(folder)
    if not files:
        raise ValueError(f"{folder}: holds no images")
    return files


def _children(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _fitted(item: DatasetItem, lq: Tensor, hr: Tensor, scale: int) -> Tensor:
    height, width = lq.shape[1] * scale, lq.shape[2] * scale
    if not (0 <= hr.shape[1] - height < scale and 0 <= hr.shape[2] - width < scale):
        raise ValueError(
            f"{item.name}: {lq.shape[2]} x {lq.shape[1]} px at x{scale} is {width} x {height}, but the high-quality "
            f"image has {hr.shape[2]} x {hr.shape[1]}; give the right scale, or files that fit"
        )
    return hr[:, :height, :width].contiguous()


def _file_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return file_digest(path)
    except OSError:  # its records say why
        return "unreadable"
