"""Ten restorations and ten assessments of photographs that nano never learnt from, chosen by place and not by result.

python benchmarks/gallery.py restorations --photos DIR [DIR ...] --out docs/images/restorations.jpg
python benchmarks/gallery.py assessments --photos DIR [DIR ...] --out docs/images/assessments.jpg

restorations: the middle 256 px of the first ten held-out photographs (see `hold_out`) are reduced x4 and damaged by the
preset `moderate`. Columns: input, bicubic, one default restoration, best of 8 of `varied_pool`, original. Under each
stand nano's rating and VIF and PSNR-Y against the original. `*` marks the best of the three restored columns.
assessments: photographs that scikit-image bundles, then held-out ones, as they are, then the same number of held-out
ones after `moderate` and a bicubic enlargement. Each card shows the rating, nano's informative sentence, the region of
round 1 and the crop of round 2; the words of both rounds are printed as Markdown.
"""

import argparse
import textwrap
from pathlib import Path

from best_of_n import SCALE, middle
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from restoration import Restorer, best_of_n
from restoration.degradation import degrade
from restoration.evaluation.measuring import bicubic
from restoration.metrics import psnr_y, vif
from restoration.restorer.rng import candidate_seed
from restoration.selection.pool import varied_pool
from train_iqa.nano.synthetic import hold_out, list_photographs
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.images.contact_sheet import SheetWords, contact_sheet
from zoomiqa_reward.images.drawing import BACK, GOOD, INK, MUTED
from zoomiqa_reward.images.lettering import draw_text
from zoomiqa_reward.images.sheet_entry import entry_of
from zoomiqa_reward.runs.outputs import write_figure

COUNT, SIDE_PX, PRESET, SEED = 10, 256, "moderate", 0
COLUMNS = ("input", "bicubic", "default", "best of 8", "original")
GAP_PX, LINE_PX, HEAD_PX = 8, 18, 28
BUNDLED = ("astronaut", "coffee", "chelsea", "rocket", "clock")
"""Photographs of scikit-image; the last is blurred by real motion."""


def held_out(folders: list[Path]) -> list[Path]:
    """Return the held-out photographs of all folders, in order."""
    return [path for folder in folders for path in hold_out(list_photographs(folder))[1]]


def restored(path: Path, index: int, pool: list[Restorer], iqa: ZoomIQA) -> list[tuple[Image.Image, str, bool]]:
    """Return (image, numbers, whether it is the best of the restored ones by VIF) of each column."""
    hr = middle(load_image(path), SIDE_PX)
    lq, _ = degrade(hr, PRESET, seed=SEED + index, scale=SCALE)
    chosen = best_of_n(pool, lq, ZoomIQAReward(iqa), n=len(pool), seed=SEED, progress=False)
    default = next(iter(pool[0].restore(lq, [candidate_seed(SEED, 0)])))
    images: list[Tensor] = [bicubic(lq, SCALE), load_image(to_pil(default.image)), load_image(chosen.best.image)]
    scores = [vif(image, hr) for image in images]
    marks = [score == max(scores) for score in scores]
    rows = [(to_pil(lq).resize((hr.shape[2], hr.shape[1]), Image.Resampling.NEAREST), rating_of(iqa, lq), False)]
    for image, score, mark in zip(images, scores, marks, strict=True):
        numbers = f"{rating_of(iqa, image)}  VIF {score:.3f}  {psnr_y(image, hr):.1f} dB"
        rows.append((to_pil(image), numbers + ("  *" if mark else ""), mark))
    return [*rows, (to_pil(hr), rating_of(iqa, hr), False)]


def rating_of(iqa: ZoomIQA, image: Tensor) -> str:
    """Return the rating as it stands under an image."""
    return f"rating {float(iqa.rate([image], strict=True).mean[0]):.2f}"


def restorations(args: argparse.Namespace) -> None:
    """Draw one row per photograph."""
    iqa, pool = ZoomIQA.from_pretrained("nano"), varied_pool("nano")
    paths = held_out(args.photos)[:COUNT]
    height = SIDE_PX + LINE_PX + GAP_PX
    sheet = Image.new("RGB", (len(COLUMNS) * (SIDE_PX + GAP_PX) + GAP_PX, HEAD_PX + len(paths) * height), BACK)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw_text(draw, (GAP_PX + column * (SIDE_PX + GAP_PX), 5), title, 16, INK)
    for row, path in enumerate(tqdm(paths, desc="restorations")):
        for column, (image, numbers, is_best) in enumerate(restored(path, row, pool, iqa)):
            left, top = GAP_PX + column * (SIDE_PX + GAP_PX), HEAD_PX + row * height
            sheet.paste(image, (left, top))
            draw_text(draw, (left, top + SIDE_PX + 2), numbers, 13, GOOD if is_best else MUTED)
    print(write_figure(sheet, args.out, overwrite=True))


def assessments(args: argparse.Namespace) -> None:
    """Draw the cards, and print the words of both rounds."""
    import skimage.data

    iqa, paths = ZoomIQA.from_pretrained("nano"), held_out(args.photos)
    found = [(name, load_image(getattr(skimage.data, name)())) for name in BUNDLED]
    for index, path in enumerate(paths[: COUNT - len(found)]):
        hr = middle(load_image(path), 2 * SIDE_PX)
        damaged = index % 2 == 1
        image = bicubic(degrade(hr, PRESET, seed=SEED + index, scale=SCALE)[0], SCALE) if damaged else hr
        found.append((path.stem + (f", {PRESET}" if damaged else ""), image))
    entries = []
    for name, image in tqdm(found, desc="assessments"):
        assessment = iqa.assess([image])[0]
        entries.append(entry_of(name, rating=assessment.rating, assessment=assessment, error=assessment.error))
        print(
            f"\n**{name}**: {assessment.rating:.2f}" + ("" if assessment.valid else f", not valid: {assessment.error}")
        )
        for number, turn in enumerate(assessment.turns, 1):
            for heading, text in turn.sections.items():
                print(textwrap.fill(f"- round {number}, {heading}: {text}", 118, subsequent_indent="  "))
    contact_sheet(
        [to_pil(image) for _, image in found], entries, args.out, 5, overwrite=True,
        words=SheetWords(title="Ten assessments.", measure="rating in reason"),
    )  # fmt: skip
    print(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("restorations", "assessments"))
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    {"restorations": restorations, "assessments": assessments}[args.what](args)


if __name__ == "__main__":
    main()
