"""Every kind of image comes in as float32 CHW RGB in [0, 1], or is refused with its name and the way out."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from zoomiqa_reward.images import ImageError, describe, load_image, load_images, save_png, to_pil
from zoomiqa_reward.images import loading as images

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # 7 wide, 5 high: the axes cannot be mixed up unseen


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_all_ways_in_agree_for_8_bit_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    for source in (path, str(path), Image.open(path), Image.fromarray(RGB), RGB, chw(RGB), chw(RGB)[None]):
        image = load_image(source)
        assert image.dtype == torch.float32
        assert image.shape == (3, 5, 7)
        assert torch.equal(image, chw(RGB))


def test_all_256_levels_survive_the_round_trip(tmp_path: Path) -> None:
    levels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=2)
    assert np.array_equal(np.asarray(to_pil(load_image(levels))), levels)
    assert torch.equal(load_image(save_png(load_image(levels), tmp_path / "levels.png")), load_image(levels))


def test_to_pil_rounds_half_up() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, 254.49]) / 255
    assert np.asarray(to_pil(values.reshape(1, 1, 4)))[0, :, 0].tolist() == [1, 2, 3, 254]


def white_mix(colour: float, alpha: float) -> float:
    return colour / 255 * alpha / 255 + 1 - alpha / 255


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), (1, 1, 1)),
        (Image.new("L", (2, 2), 51), (0.2, 0.2, 0.2)),
        (Image.new("LA", (2, 2), (51, 0)), (1, 1, 1)),
        (Image.new("LA", (2, 2), (0, 51)), (0.8, 0.8, 0.8)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 102)), (1, 0.6, 0.6)),
        (Image.new("RGBA", (2, 2), (10, 200, 30, 77)), tuple(white_mix(c, 77) for c in (10, 200, 30))),
        (Image.new("RGBA", (2, 2), (51, 102, 153, 255)), (0.2, 0.4, 0.6)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), (1, 1, 1)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (1, 0, 0)),
        (Image.new("I;16", (2, 2), 13107), (0.2, 0.2, 0.2)),
        (Image.new("HSV", (2, 2), (0, 0, 255)), (1, 1, 1)),
    ],
)
def test_modes_by_hand(image: Image.Image, expected: tuple[float, ...]) -> None:
    assert load_image(image)[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert load_image(tmp_path / "plain.png")[:, 0].T.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert load_image(tmp_path / "clear.png")[:, 0].T.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize(("mode", "values", "clear"), [("L", [0, 9], 9), ("RGB", [(0, 0, 0), (9, 9, 9)], (9, 9, 9))])
def test_transparent_colour_of_a_png_is_white(tmp_path: Path, mode: str, values: list, clear: object) -> None:
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    image.save(tmp_path / "a.png", transparency=clear)
    assert load_image(tmp_path / "a.png")[0].tolist() == [[0, 1]]


def test_16_bit_grey_png_keeps_its_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", values, values.astype(">u2")):
        assert load_image(source)[1].tolist() == [[0, pytest.approx(1 / 65535), pytest.approx(1 / 255), 1]]
    image = Image.open(tmp_path / "deep.png")
    image.info["transparency"] = 257
    assert load_image(image)[1].tolist() == [[0, pytest.approx(1 / 65535), 1, 1]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # Undoing each orientation by numpy, from the EXIF standard's list of where row 0 and column 0 lie.
    upright = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tiff"):
        Image.fromarray(RGB).save(tmp_path / name, exif=exif)
        assert torch.equal(load_image(tmp_path / name), chw(np.ascontiguousarray(upright)))
        with Image.open(tmp_path / name) as image:
            save_png(image, tmp_path / "out.png")
        assert torch.equal(load_image(tmp_path / "out.png"), chw(np.ascontiguousarray(upright)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [5, 6])
def test_a_tiff_without_compression_that_lies_on_its_side(tmp_path: Path, mode: str, orientation: int) -> None:
    # Pillow maps such files into memory by their size after the turn, which shears the rows.
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1700
    stored = Image.fromarray(deep) if mode == "I;16" else Image.fromarray((deep >> 8).astype(np.uint8)).convert(mode)
    turned = stored.transpose(Image.Transpose.TRANSPOSE if orientation == 5 else Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.tiff", exif=exif)
    assert torch.equal(load_image(tmp_path / "a.tiff"), load_image(turned))
    with Image.open(tmp_path / "a.tiff") as image:
        assert torch.equal(load_image(image), load_image(turned))
    if mode != "CMYK":
        with Image.open(tmp_path / "a.tiff") as image:
            save_png(image, tmp_path / "a.png")
        assert torch.equal(load_image(tmp_path / "a.png"), load_image(turned))


def test_unreadable_exif_leaves_the_image_as_stored(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert torch.equal(load_image(tmp_path / "a.png"), chw(RGB))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert load_image(tmp_path / name)[:, 2, 2].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("shape", "dtype"), [((5, 7), np.uint8), ((5, 7, 1), np.uint8), ((5, 7), np.uint16)])
def test_grey_arrays_become_three_equal_channels(shape: tuple[int, ...], dtype: type) -> None:
    array = RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    image = load_image(array)
    assert torch.equal(image[0], image[1])
    assert image[2].numpy() == pytest.approx(array.reshape(5, 7) / np.iinfo(dtype).max, abs=1e-7)


def test_rgba_array_is_put_on_white() -> None:
    assert load_image(np.array([[[0, 0, 255, 51]]], dtype=np.uint8)).flatten().tolist() == pytest.approx([0.8, 0.8, 1])


def test_views_of_arrays_are_read_as_they_look() -> None:
    assert torch.equal(load_image(RGB[::-1, ::2]), chw(np.ascontiguousarray(RGB[::-1, ::2])))
    frozen = RGB.copy()
    frozen.flags.writeable = False
    load_image(frozen).zero_()
    assert np.array_equal(frozen, RGB)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (1, 3, 4, 5)])
def test_tensors_keep_their_graph(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    leaf = torch.rand(shape).to(dtype).requires_grad_()
    image = load_image(leaf)
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.float32
    image.sum().backward()
    repeats = 3 if shape[0] == 1 and len(shape) == 3 else 1
    assert torch.equal(leaf.grad, torch.full(shape, float(repeats), dtype=dtype))


def test_small_excess_is_clamped_and_keeps_its_gradient() -> None:
    leaf = torch.tensor([-0.0009, 0.3, 1.0009]).reshape(1, 1, 3).repeat(3, 1, 1).requires_grad_()
    image = load_image(leaf)
    assert image[0, 0].tolist() == [0, pytest.approx(0.3), 1]
    image.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_lists_batches_and_single_sources(tmp_path: Path) -> None:
    path = save_png(chw(RGB), tmp_path / "a.png")
    mixed = load_images([path, Image.new("L", (9, 2)), RGB[:2], torch.zeros(3, 8, 8)])
    assert [tuple(image.shape) for image in mixed] == [(3, 5, 7), (3, 2, 9), (3, 2, 7), (3, 8, 8)]
    batch = torch.rand(2, 3, 4, 4, requires_grad=True)
    split = load_images(batch)
    assert torch.equal(torch.stack(split), batch)
    split[1].sum().backward()
    assert batch.grad[0].abs().sum() == 0
    assert batch.grad[1].min() == 1
    assert torch.equal(load_images(np.stack([RGB, RGB]))[1], chw(RGB))
    for single in (path, (path,), RGB, chw(RGB), chw(RGB)[None], RGB[None]):
        assert [tuple(image.shape) for image in load_images(single)] == [(3, 5, 7)]


@pytest.mark.parametrize(
    ("source", "rule", "way_out"),
    [
        (RGB.astype(np.float32), "not float32", "pass a float CHW tensor"),
        (RGB.astype(np.int64), "not int64", "pass a float CHW tensor"),
        (RGB > 3, "not bool", "pass a float CHW tensor"),
        (RGB.transpose(2, 0, 1), "3x5x7", "array.transpose(1, 2, 0)"),
        (RGB[:, :, :2], "5x7x2", "1, 3 or 4 channels"),
        (RGB[:0], "no pixels", "at least 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), "2x4x4x3", "HWC"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "not torch.uint8", "tensor.float() / 255"),
        (torch.zeros(4, 5, 3), "4x5x3", "tensor.permute(2, 0, 1)"),
        (torch.zeros(4, 5, 5), "4x5x5", "alpha channel"),
        (torch.zeros(5, 5), "5x5", "CHW"),
        (torch.zeros(2, 3, 4, 4), "2x3x4x4", "load_images"),
        (torch.zeros(3, 0, 4), "no pixels", "at least 1"),
        (torch.full((3, 2, 2), torch.nan), "NaN or infinity", "check how"),
        (torch.full((3, 2, 2), -torch.inf), "NaN or infinity", "check how"),
        (torch.full((3, 2, 2), 255.0), "255..255", "divide 0..255 by 255"),
        (torch.full((3, 2, 2), -0.002), "-0.002..-0.002", "(x + 1) / 2"),
        (Image.new("F", (2, 2)), "mode F", "float tensor"),
        (Image.new("I", (2, 2), 70000), "32-bit integers", "float tensor"),
        (Image.new("L", (2, 2), 255).convert("I"), "32-bit integers", "float tensor"),
        (Image.new("RGB", (0, 3)), "no pixels", "at least 1"),
        (io.BytesIO(b"x"), "BytesIO", "open file objects with PIL"),
        (None, "NoneType", "a path, a PIL image"),
        ([RGB], "list", "a path, a PIL image"),
    ],
)
def test_refusals_name_the_rule_and_the_way_out(source: object, rule: str, way_out: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert rule in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.write_text("<svg/>"), "not an image"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, make: object, rule: str) -> None:
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(ImageError, match=rule) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.tiff"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert load_image(path).shape == (3, 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=name):
        load_image(path)


def test_closed_pil_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ImageError, match="PIL RGB 7x5"):
        load_image(image)


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_500, 60_000])  # Pillow warns about the first and raises for the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb.*resize"):
        load_image(tmp_path / "bomb.png")


def test_bomb_warning_as_error_is_an_image_error_too(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(9_500, 9_500))
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(tmp_path / "bomb.png")


def test_own_limit_holds_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert load_image(Image.new("RGB", (10, 10))).shape == (3, 10, 10)
    with pytest.raises(ImageError, match="resize"):
        load_image(Image.new("RGB", (10, 11)))


def test_bomb_in_the_text_of_a_png_is_refused(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    Image.fromarray(RGB).save(tmp_path / "text.png", pnginfo=text)
    with pytest.raises(ImageError, match=r"text\.png"):
        load_image(tmp_path / "text.png")


def test_errors_name_the_place_in_the_list(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^image 1 \(tensor 3x4x4\): values"):
        load_images([RGB, torch.full((3, 4, 4), 9.0)])
    with pytest.raises(ImageError, match=r"^image 0 \(.*gone\.png\): no such file"):
        load_images([tmp_path / "gone.png"])
    with pytest.raises(ImageError, match="image 1"):
        load_images(torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.nan)]))
    for nothing in ([], (), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ImageError, match="no images"):
            load_images(nothing)


def test_url_is_told_to_be_downloaded() -> None:
    with pytest.raises(ImageError, match="download it first"):
        load_image("https://example.org/a.png")


def test_describe() -> None:
    assert describe(Path("x/a.png")) == "x/a.png"
    assert describe(torch.zeros(3, 64, 64), 3) == "image 3 (tensor 3x64x64)"
    assert describe(RGB) == "image (uint8 array 5x7x3)"
    assert describe(Image.new("L", (7, 5)), 0) == "image 0 (PIL L 7x5)"
    assert describe(object()) == "image (object)"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "HSV"])
def test_save_png_keeps_what_load_image_sees(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (7, 5), 4660) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    path = save_png(image, tmp_path / "a.png")
    assert torch.equal(load_image(path), load_image(image))
    assert os.listdir(tmp_path) == ["a.png"]


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(chw(RGB), tmp_path / "a.png")
    with pytest.raises(ImageError):
        save_png(torch.full((3, 2, 2), 7.0), path)

    def full_disk(*args: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_png(torch.zeros(3, 2, 2), path)
    assert os.listdir(tmp_path) == ["a.png"]
    assert torch.equal(load_image(path), chw(RGB))


def test_to_pil_refuses_other_types() -> None:
    with pytest.raises(ImageError, match="load_image first"):
        to_pil(RGB)


@pytest.mark.gpu
def test_tensors_stay_on_their_device() -> None:
    leaf = torch.rand(3, 4, 4, device="cuda", requires_grad=True)
    assert load_image(leaf).device.type == "cuda"
    assert to_pil(leaf).size == (4, 4)
