"""The README's figure, from a folder of the demo: `make demo`, then `python benchmarks/hero.py demo/astronaut OUT.jpg`.

Input, bicubic enlargement, chosen restoration and original, above the same detail of each, with the numbers that the
demo wrote.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE_PX, GAP_PX, CAPTION_PX = 300, 8, 46
DETAIL = (0.27, 0.02, 0.57, 0.32)
"""Left, top, right and bottom of the detail, as fractions."""


def panels(folder: Path) -> list[tuple[Image.Image, str, str]]:
    """Return (image, title, numbers) of each column."""
    found = json.loads((folder / "comparison.json").read_text())
    rating, fsim = found["rating"], found["fsim"]
    low, original = Image.open(folder / "input.png"), Image.open(folder / "original.png")
    count = len((folder / "candidates.jsonl").read_text().splitlines())
    return [
        (low.resize(original.size, Image.Resampling.NEAREST), "input", f"{low.width} x {low.height} px"),
        (low.resize(original.size, Image.Resampling.BICUBIC), "bicubic",
         f"rating {rating['bicubic']:.2f}, FSIM {fsim['bicubic']:.3f}"),
        (Image.open(folder / "best.png"), f"best of {count}",
         f"rating {rating['chosen']:.2f}, FSIM {fsim['chosen']:.3f}"),
        (original, "original", f"rating {rating['original']:.2f}"),
    ]  # fmt: skip


def figure(columns: list[tuple[Image.Image, str, str]]) -> Image.Image:
    """Return the columns side by side: the whole image, its detail, title and numbers."""
    width = len(columns) * (SIDE_PX + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, 2 * SIDE_PX + GAP_PX + CAPTION_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, title, numbers) in enumerate(columns):
        left = index * (SIDE_PX + GAP_PX)
        box = tuple(round(share * image.size[axis % 2]) for axis, share in enumerate(DETAIL))
        for row, part in enumerate((image, image.crop(box))):
            shown = part.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left, row * (SIDE_PX + GAP_PX)))
        top = 2 * SIDE_PX + GAP_PX
        draw.text((left, top + 4), title, "black", ImageFont.load_default(18))
        draw.text((left, top + 25), numbers, "#444444", ImageFont.load_default(15))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    figure(panels(args.folder)).save(args.out, quality=85)
