"""Images of more than 8 bits: what a file's tags say of depth and white, and the note where bits are lost."""

import struct
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from zoomiqa_reward.images import ImageError, load_image, save_png
from zoomiqa_reward.images.loading import conversions


def grey_tiff(values: list[int], bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Return a TIFF of one row: the header, the tags, the packed samples."""
    if bits == 12:
        packed = "".join(f"{value:012b}" for value in values)
        samples = bytes(int(packed[k : k + 8], 2) for k in range(0, len(packed), 8))
    else:
        samples = b"".join(value.to_bytes(bits // 8, "little") for value in values)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(samples),
            339: sample_format}  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + samples


@pytest.mark.parametrize(
    ("bits", "photometric", "values", "expected"),
    [
        (12, 1, [0, 2048, 4095, 4095], [0, 2048 / 4095, 1, 1]),
        (16, 1, [0, 13107, 65535], [0, 0.2, 1]),
        (16, 0, [0, 52428, 65535], [1, 0.2, 0]),
        (8, 0, [0, 204, 255], [1, 0.2, 0]),
    ],
)
def test_a_grey_tiff_has_the_depth_and_the_white_of_its_tags(
    bits: int, photometric: int, values: list[int], expected: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "grey.tif"
    path.write_bytes(grey_tiff(values, bits, photometric))
    assert load_image(path)[0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    with Image.open(path) as image:
        saved = save_png(image, tmp_path / "grey.png")
    assert load_image(saved)[0, 0].tolist() == pytest.approx(expected, abs=0.5 / 255)


@pytest.mark.parametrize(("bits", "sample_format"), [(16, 2), (32, 1), (32, 2)])
def test_samples_without_a_fixed_range_are_refused(bits: int, sample_format: int, tmp_path: Path) -> None:
    path = tmp_path / "grey.tif"
    path.write_bytes(grey_tiff([0, 100, 255], bits, sample_format=sample_format))
    with pytest.raises(ImageError, match=f"{bits}-bit .* integers has no fixed range"):
        load_image(path)


def test_a_note_on_bit_depth_is_about_the_samples_alone(tmp_path: Path) -> None:
    wide = tmp_path / "wide.bmp"  # its rows have 1632 bytes
    Image.new("RGB", (544, 2), (9, 9, 9)).save(wide)
    assert conversions(wide) == ()
    deep = tmp_path / "deep.ppm"
    deep.write_bytes(b"P6 2 2 65535\n" + bytes(24))
    assert conversions(deep) == ("16-bit colour is reduced to 8 bits",)


@pytest.mark.parametrize(("space", "notes"), [("sRGB", ()), ("LAB", ("its colour profile is not applied",))])
def test_a_profile_of_version_4_that_is_srgb_loses_nothing(tmp_path: Path, space: str, notes: tuple[str, ...]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    assert b"sRGB" not in profile  # version 4 writes its description in two bytes per letter
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", icc_profile=profile)
    assert conversions(tmp_path / "a.png") == notes
