"""Any image as float32 CHW RGB in [0, 1]: load one, or each of a batch; hash its pixels; write it as PNG.

EXIF orientation, transparency and bit depth are applied; of several frames the first is read. Colour profiles are not
applied. An image that cannot be read exactly raises an ImageError that names the image, the rule and the way out,
because a rating of wrong pixels would go unnoticed.

A batch is split without loading, and its images are loaded one at a time. Two images are the same if the hashes of
their pixels are, whatever file or type they came from.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.runs.outputs import KEPT, claim_file, replacing, save_image

MAX_PIXELS = 89_478_485
"""Largest image that is decoded: the limit of Pillow's warning about decompression bombs. As float32 it takes 1 GB."""

RANGE_TOLERANCE = 1e-3
"""Values this far outside [0, 1] are clamped, because resampling and half precision overshoot by about as much."""

# Pillow's decoders raise these, by format, on damaged data (RuntimeError: AVIF's); AssertionError on a closed file, and
# UserWarning where filters make warnings errors.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
    AssertionError, AttributeError, RuntimeError, MemoryError, UserWarning,
)  # fmt: skip
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the warning, where filters make it an error
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_DEEP_FORMATS = ("PPM", "PNG")  # Pillow reads their 16 bits, whatever the maximum of a PGM, as 0..65535
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | Tensor
"""One image, as `load_image` takes it."""
ImageSources = ImageSource | Sequence[ImageSource]
"""One image, a list or tuple of images, or a batch: a BCHW tensor or a numpy NHWC array."""


class ImageError(ZoomIQAError, ValueError):
    """An image cannot be used. The message names the image, the broken rule and the way out."""


def describe(source: object, index: int | None = None) -> str:
    """Return the name of an image in messages: its index (from 0) with its path, or with its kind and size.

    >>> describe("a.png"), describe("a.png", 2), describe(torch.zeros(3, 64, 48), 3)
    ('a.png', 'image 2 (a.png)', 'image 3 (tensor 3x64x48)')
    """
    if isinstance(source, str | os.PathLike):
        if index is None:
            return os.fspath(source)
        kind = os.fspath(source)
    elif isinstance(source, Image.Image):
        kind = f"PIL {source.mode} {source.width}x{source.height}"
    elif isinstance(source, np.ndarray):
        kind = f"{source.dtype} array {_by(source.shape)}"
    elif isinstance(source, Tensor):
        kind = f"tensor {_by(source.shape)}"
    else:
        kind = type(source).__name__
    return f"image ({kind})" if index is None else f"image {index} ({kind})"


def load_image(source: ImageSource) -> Tensor:
    """Return one image as a float32 CHW RGB tensor in [0, 1].

    Takes a path, a PIL image, a numpy array uint8 or uint16 (HW, or HWC with 1, 3 or 4 channels), or a float tensor
    in [0, 1] (CHW with 1 or 3 channels, or BCHW with B = 1). The result lies on the CPU. A tensor stays on its device
    and **keeps its autograd graph**. Values outside [0, 1] by at most `RANGE_TOLERANCE` are clamped; their gradient
    passes unchanged. A float32 tensor that needs no change is returned itself.

    Grey is repeated to three channels. Transparent pixels (alpha, or a transparent colour) are blended with
    white. EXIF orientation is applied. Of an animation the first frame is read (of an open PIL image, the current
    one). 8-bit values are divided by 255, 16-bit ones (grey PNG, PGM and TIFF, uint16) by 65535, those of a grey
    12-bit TIFF by 4095; Pillow itself reduces 16-bit **colour** files to 8 bits. CMYK is converted without colour
    profile.

    Raises ImageError: missing file, folder, not an image, truncated or damaged, more than `MAX_PIXELS` (checked
    before decoding), no pixels, unsupported dtype or channels, signed or 32-bit values (they have no fixed range),
    NaN or infinity, values out of range. Truncated files are not noticed in a program that sets Pillow's
    `LOAD_TRUNCATED_IMAGES`.
    """
    return _load(source, describe(source))


def load_images(images: ImageSources) -> list[Tensor]:
    """Load several images as `load_image` does, in order. Their sizes may differ.

    Takes one source, or a list or tuple of any mixture of sources. A BCHW tensor and a numpy NHWC array are split into
    their images. Raises ImageError that names the index of the image (from 0); an empty list raises too.
    """
    is_batch = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    sources = split_images(images)
    if not is_batch and not isinstance(images, list | tuple):
        return [load_image(source) for source in sources]
    if not sources:
        raise ImageError(f"no images: got an empty {type(images).__name__}; pass at least one")
    return [_load(source, describe(source, index)) for index, source in enumerate(sources)]


def conversions(source: object) -> tuple[str, ...]:
    """Return what `load_image` loses of a file or an open PIL image, as notes for the results; usually nothing.

    Transparency, 16-bit colour that Pillow reduces to 8 bits, a colour profile that is not applied, further frames.
    Not told: AVIF and JPEG 2000 of more than 8 bits, which Pillow reduces too. Nothing else is lost. A file that cannot
    be opened has no notes.
    """
    try:
        if isinstance(source, str | os.PathLike):
            with Image.open(source) as image:
                return _lost(image)
        return _lost(source) if isinstance(source, Image.Image) else ()
    except (*_DECODE_ERRORS, *_BOMBS):
        return ()


def _lost(image: Image.Image) -> tuple[str, ...]:
    deep = any(_is_deep(tile.args) for tile in getattr(image, "tile", ()))
    losses = {
        "transparency is put on white": image.has_transparency_data and not _is_opaque(image),
        "16-bit colour is reduced to 8 bits": deep and image.mode in ("RGB", "RGBA"),
        "its colour profile is not applied": "icc_profile" in image.info and not _is_srgb(image.info["icc_profile"]),
        f"only the first of {getattr(image, 'n_frames', 1)} frames is read": getattr(image, "n_frames", 1) > 1,
    }
    return tuple(note for note, is_so in losses.items() if is_so)


def _is_deep(decoder_args: object) -> bool:
    """Return whether a tile's samples have 16 bits: Pillow's raw mode says it (`RGB;16B`), or the maximum of a PPM."""
    args = decoder_args if isinstance(decoder_args, tuple) else (decoder_args,)
    is_ppm = len(args) == 2 and isinstance(args[1], int) and args[1] > 255
    return bool(args) and isinstance(args[0], str) and (";16" in args[0] or is_ppm)


def _is_opaque(image: Image.Image) -> bool:
    is_small = image.width * image.height <= MAX_PIXELS  # its pixels are decoded to know
    return is_small and "A" in image.getbands() and image.getchannel("A").getextrema()[0] == 255


def _is_srgb(profile: object) -> bool:
    """Return whether its description, in the letters of version 2 or 4, says so: such values mean what they are."""
    return isinstance(profile, bytes) and any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be"))


def to_pil(tensor: Tensor) -> Image.Image:
    """Return an RGB PIL image of a float tensor in [0, 1] (CHW with 1 or 3 channels).

    Values are rounded half up, so an 8-bit image from `load_image` comes back bit for bit. Raises ImageError
    as `load_image` does.
    """
    if not isinstance(tensor, Tensor):
        raise ImageError(f"{describe(tensor)}: to_pil takes a float CHW tensor; use load_image first")
    pixels = _load(tensor.detach(), describe(tensor)).mul(255.0).add(0.5).floor().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_png(image: Tensor | Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a PNG and return its path. The file appears at once: no reader sees half of it.

    A tensor is converted by `to_pil`. A PIL image keeps its mode if PNG supports it, else it becomes RGB; its EXIF
    orientation is applied. The folder must exist. A file that this program did not make is replaced only with
    `overwrite`, and no figure replaces the new file. Raises ImageError, OutputError, OSError.
    """
    if isinstance(image, Image.Image):
        _read_all(image)
        tags = getattr(image, "tag_v2", {})
        is_as_in_png = tags.get(_BITS, (16,))[0] in (1, 8, 16) and tags.get(_PHOTOMETRIC) != 0
        keeps_mode = image.mode in _PNG_MODES and (image.mode != "I;16" or is_as_in_png)
        pil_image = ImageOps.exif_transpose(image) if keeps_mode else to_pil(load_image(image))
    else:
        pil_image = to_pil(image)
    target = claim_file(path, overwrite=overwrite)
    with replacing(target, overwrite=True) as half:
        save_image(pil_image, half, "PNG", mark=KEPT)
    return target


def _load(source: ImageSource, name: str) -> Tensor:
    if isinstance(source, Tensor):
        return _from_tensor(source, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source), name)
    raise ImageError(f"{name}: an image is a path, a PIL image, a numpy array or a tensor; open file objects with PIL")


def _from_file(path: Path, name: str) -> Tensor:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # opening a pipe waits for ever
        raise ImageError(f"{name}: is not a regular file; save the image as a file")
    try:
        with Image.open(path) as image:
            return _from_pil(image, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        hint = "; download it first" if "://" in name else ""
        what = "is a link to a file that is missing" if path.is_symlink() else "no such file or folder"
        raise ImageError(f"{name}: {what}{hint}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, but one image file is needed; name a file in it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that Pillow can read; convert it to PNG or JPEG") from error
    except _BOMBS as error:
        raise ImageError(_too_large(name)) from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name}: cannot be read ({error}); check or re-export the file") from error


def _from_pil(image: Image.Image, name: str) -> Tensor:
    if min(image.size) < 1:
        raise ImageError(f"{name}: has no pixels ({image.width}x{image.height}); both sides must be at least 1")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large(name, image.width * image.height))
    try:
        _read_all(image)  # a truncated file fails here
        if image.mode in _SIXTEEN_BIT_MODES:
            return _from_deep_grey(image, name)
        return _from_array(_pixels(_upright(image), name), name)
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError(_too_large(name)) from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name}: truncated, damaged or closed ({error!r}); check or re-export the file") from error


def _read_all(image: Image.Image) -> None:
    """Load the image, not through a map of its file: Pillow shears the rows of a TIFF that lies on its side."""
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        image.load()
        return
    image.filename = ""  # type: ignore[attr-defined] # of a file's image; without a name Pillow makes no map
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_DECODE_ERRORS, UserWarning):  # unreadable EXIF says nothing; viewers show such photos as stored
        return image


def _from_deep_grey(image: Image.Image, name: str) -> Tensor:
    """Return a grey image of more than 8 bits; a TIFF's tags say how many, and whether 0 is white."""
    tags = getattr(image, "tag_v2", {})
    bits, is_unsigned = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    if bits > 16 or not is_unsigned or (image.mode == "I" and not tags and image.format not in _DEEP_FORMATS):
        kind = f"{bits}-bit {'unsigned' if is_unsigned else 'signed'} integers" if tags else "32-bit integers"
        raise ImageError(
            f"{name}: mode {image.mode} of {kind} has no fixed range; "
            "scale it yourself and pass a float tensor in [0, 1]"
        )
    white = 2**bits - 1
    values = np.asarray(_upright(image))
    if values.min() < 0 or values.max() > white:
        raise ImageError(
            f"{name}: values {values.min()}..{values.max()} are not in 0..{white}; "
            "scale it yourself and pass a float tensor in [0, 1]"
        )
    transparent = image.info.get("transparency")
    if transparent is not None:
        values = np.where(values == transparent, white, values)
    return _from_array((white - values if tags.get(_PHOTOMETRIC) == 0 else values).astype(np.uint16), name, white)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "F":
        raise ImageError(f"{name}: mode F has no fixed range; scale it yourself and pass a float tensor in [0, 1]")
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _from_array(array: np.ndarray, name: str, white: int | None = None) -> Tensor:
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(
            f"{name}: a numpy image is uint8 (0..255) or uint16 (0..65535), not {array.dtype}; "
            "for values in [0, 1] pass a float CHW tensor: torch.from_numpy(array).permute(2, 0, 1)"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; transpose it: array.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: a numpy image is HW, or HWC with 1, 3 or 4 channels, not {_by(array.shape)}{hint}")
    if array.size == 0:
        raise ImageError(f"{name}: has no pixels ({_by(array.shape)}); both sides must be at least 1")
    values = array.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(white or np.iinfo(array.dtype).max)
    if len(values) == 4:
        values = values[:3] * values[3] + (1 - values[3])
    return torch.from_numpy(values if len(values) == 3 else np.repeat(values, 3, axis=0))


def _from_tensor(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        white = 65535 if tensor.dtype == torch.uint16 else 255
        raise ImageError(
            f"{name}: a tensor image holds floats in [0, 1], not {tensor.dtype}; "
            f"for 0..{white} pass tensor.float() / {white}"
        )
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        hint = "; one image is wanted here; pass a batch alone to load_images" if tensor.ndim == 4 else ""
        if tensor.ndim == 3 and tensor.shape[2] in (1, 3):
            hint = "; permute it: tensor.permute(2, 0, 1)"
        elif tensor.ndim == 3 and tensor.shape[0] == 4:
            hint = "; put the alpha channel on a background first"
        raise ImageError(f"{name}: a tensor image is CHW with 1 or 3 channels, not {_by(tensor.shape)}{hint}")
    if tensor.numel() == 0:
        raise ImageError(f"{name}: has no pixels; both sides must be at least 1")
    image = tensor.to(torch.float32)
    lowest, highest = (float(value) for value in torch.aminmax(image.detach()))  # NaN goes through both
    if not np.isfinite([lowest, highest]).all():
        raise ImageError(f"{name}: holds NaN or infinity; check how the image was made or decoded")
    if lowest < -RANGE_TOLERANCE or highest > 1 + RANGE_TOLERANCE:
        raise ImageError(
            f"{name}: values {lowest:.4g}..{highest:.4g} are not in [0, 1]; "
            "divide 0..255 by 255, map -1..1 by (x + 1) / 2, or clamp(0, 1) if the excess has no meaning"
        )
    if lowest < 0 or highest > 1:
        image = image + (image.clamp(0, 1) - image).detach()  # clamp alone would stop the gradient there
    return image.repeat(3, 1, 1) if image.shape[0] == 1 else image


def _too_large(name: str, pixels: int | None = None) -> str:
    size = "" if pixels is None else f"{pixels / 1e6:.0f} million pixels, "
    limit = f"more than {MAX_PIXELS / 1e6:.0f} million pixels are not decoded (decompression bomb?)"
    return f"{name}: {size}{limit}; resize it first"


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(int(side)) for side in shape) or "scalar"


def split_images(images: ImageSources) -> list[ImageSource]:
    """Return the sources of a batch, unloaded: a list's items, a BCHW tensor's or NHWC array's images, or the one."""
    if isinstance(images, list | tuple):
        return list(images)
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    return [cast(ImageSource, images)]  # neither a list nor a tuple: no sequence of other kinds is taken


def load_each(images: ImageSources) -> Iterator[Tensor]:
    """Yield each image when it is its turn: a thousand paths are not held in memory at once."""
    sources = split_images(images)
    for index, source in enumerate(sources):
        try:
            yield load_image(source)
        except ImageError as error:
            raise error if len(sources) == 1 else ImageError(f"image {index}: {error}") from error


def hash_pixels(image: Tensor) -> str:
    """Return the sha256 of a CHW image's float32 pixels and shape; where it lies in memory does not matter."""
    pixels = image.detach().to("cpu", torch.float32).contiguous()
    head = f"float32 {tuple(pixels.shape)} ".encode()
    return hashlib.sha256(head + pixels.numpy().tobytes()).hexdigest()
