"""Damaged and odd image files of many kinds, by number: what a folder of downloads holds after a few years."""

import random
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF", ".ppm": "PPM",
           ".tga": "TGA", ".jp2": "JPEG2000", ".avif": "AVIF"}  # fmt: skip
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I", "LA", "PA", "F", "YCbCr", "LAB", "HSV")
NAMES = (
    "two\nlines", "tab\t", "[1]", "a*b", "sp ace ", "照片", "é", "-dash", "quote'\"", "x" * 200, "äöüß" * 20,
    "‮gnp", "\U0001f5bc\ufe0f", "\x1b[31mred", "$(echo)", "%00", "a.png.", "CON", "#frag?query", "~", "\\back",
)  # fmt: skip
"""Parts of file names; a file has at most 255 bytes."""
EXIF_TAGS = {"orientation": 0x0112}


def write_damaged(rng: random.Random, folder: Path, number: int) -> Path:
    """Write file `number` into the folder: a name, a format, a mode and one kind of damage, drawn from `rng`."""
    suffix = rng.choice(list(FORMATS))
    name = f"{number:04d}{rng.choice(NAMES) if number % 3 == 0 else ''}"
    if number % 41 == 40:
        name = f"{number:04d}" + b"\xff\xfe".decode("utf-8", "surrogateescape")
    if number % 53 == 52:
        suffix = suffix.upper()
    file = folder / f"{name}{suffix}"
    kind = list(KINDS)[number % len(KINDS)]
    file.write_bytes(KINDS[kind](rng, suffix.lower()))
    return file


def picture(rng: random.Random) -> Image.Image:
    """Return a small image of noise, some of a single row or pixel."""
    size = (rng.choice((1, 3, 24)), rng.choice((1, 5, 24)), 3)
    return Image.fromarray(np.random.default_rng(rng.randrange(2**31)).integers(0, 256, size, np.uint8))


def encoded(rng: random.Random, suffix: str, *, mode: str | None = None, **options: object) -> bytes:
    """Return a sound file of that suffix, in a drawn mode where the format has it."""
    image, out = picture(rng), BytesIO()
    try:
        image.convert(mode or rng.choice(MODES)).save(out, FORMATS[suffix], **options)
    except (OSError, ValueError, KeyError):
        out = BytesIO()
        image.save(out, FORMATS[suffix])
    return out.getvalue()


def png_chunks(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of these declared sizes and raw rows, whatever they hold, with right checksums."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IEND", b"")


def _cut(rng: random.Random, suffix: str) -> bytes:
    held = encoded(rng, suffix)
    return held[: rng.randrange(len(held))]


def _flipped(rng: random.Random, suffix: str) -> bytes:
    held = bytearray(encoded(rng, suffix))
    for _ in range(rng.randint(1, 9)):
        held[rng.randrange(len(held))] = rng.randrange(256)
    return bytes(held)


def _zipped(rng: random.Random, suffix: str) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("image.png", encoded(rng, ".png"))
    return out.getvalue()


def _no_pixels(rng: random.Random, suffix: str) -> bytes:
    width, height = rng.choice(((0, 7), (7, 0), (0, 0)))
    return rng.choice((png_chunks(width, height, 8, 2, b""), f"P6 {width} {height} 255\n".encode()))


def _enormous(rng: random.Random, suffix: str) -> bytes:
    side = rng.choice((12_000, 100_000, 2**31 - 1))
    bitmap = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0)
    return rng.choice((png_chunks(side, side, 8, 2, b"\0" * 64), f"P6 {side} {side} 255\n".encode(), bitmap))


def _sixteen_bit(rng: random.Random, suffix: str) -> bytes:
    channels, colour = rng.choice(((1, 0), (3, 2), (4, 6), (2, 4)))
    rows = b"".join(b"\0" + rng.randbytes(2 * channels * 24) for _ in range(24))
    return png_chunks(24, 24, 16, colour, rows)


def _animated(rng: random.Random, suffix: str) -> bytes:
    frames, out = [Image.new("RGB", (24, 24), tuple(rng.randbytes(3))) for _ in range(3)], BytesIO()
    kind = rng.choice(("GIF", "WEBP", "PNG", "TIFF"))
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _turned(rng: random.Random, suffix: str) -> bytes:
    exif = Image.Exif()
    exif[EXIF_TAGS["orientation"]] = rng.choice((0, 1, 3, 6, 8, 9, 77))
    return encoded(rng, rng.choice((".jpg", ".png", ".webp")), mode="RGB", exif=exif)


def _broken_exif(rng: random.Random, suffix: str) -> bytes:
    return encoded(rng, rng.choice((".jpg", ".png", ".webp")), mode="RGB", exif=b"Exif\0\0" + rng.randbytes(40))


def _bad_profile(rng: random.Random, suffix: str) -> bytes:
    return encoded(rng, rng.choice((".jpg", ".png", ".tiff")), mode="RGB", icc_profile=rng.randbytes(90))


def _bad_text(rng: random.Random, suffix: str) -> bytes:
    rows = b"".join(b"\0" + rng.randbytes(72) for _ in range(24))
    bomb = b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)
    return png_chunks(24, 24, 8, 2, rows, rng.choice(((b"zTXt", bomb), (b"iCCP", b"x\0\0junk"), (b"eXIf", b"junk"))))


KINDS = {
    "sound": encoded,
    "truncated": _cut,
    "flipped": _flipped,
    "garbage": lambda rng, suffix: rng.randbytes(rng.randrange(300)),
    "empty": lambda rng, suffix: b"",
    "web page": lambda rng, suffix: b"<html>404</html>",
    "text": lambda rng, suffix: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "zip": _zipped,
    "wrong suffix": lambda rng, suffix: encoded(rng, rng.choice(list(FORMATS))),
    "junk behind": lambda rng, suffix: encoded(rng, suffix) + rng.randbytes(200),
    "no pixels": _no_pixels,
    "enormous": _enormous,
    "cmyk": lambda rng, suffix: encoded(rng, rng.choice((".jpg", ".tiff")), mode="CMYK"),
    "16 bit": _sixteen_bit,
    "alpha": lambda rng, suffix: encoded(rng, rng.choice((".png", ".tiff", ".webp")), mode=rng.choice(("LA", "RGBA"))),
    "animated": _animated,
    "turned": _turned,
    "broken exif": _broken_exif,
    "bad profile": _bad_profile,
    "bad chunk": _bad_text,
}
"""Kind of file -> the bytes of one."""


def write_odd_entries(folder: Path) -> tuple[set[str], set[str]]:
    """Write what is no regular file; return the names that a listing holds, and those that it passes over."""
    import os

    (folder / "._0001.png").write_bytes(b"\0\5\x16\7")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to(folder / "no such file.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop1.png").symlink_to(folder / "loop2.png")
    (folder / "loop2.png").symlink_to(folder / "loop1.png")
    (folder / "link.png").symlink_to("target.png")
    Image.effect_noise((24, 24), 80).convert("RGB").save(folder / "target.png")
    (folder / "closed.png").write_bytes((folder / "target.png").read_bytes())
    (folder / "closed.png").chmod(0)
    listed = {"nowhere.png", "loop.png", "loop1.png", "loop2.png", "link.png", "target.png", "closed.png"}
    return listed, {"._0001.png", "folder.png", "pipe.png"}
