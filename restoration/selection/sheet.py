"""Contact sheet of best-of-N: the input and bicubic enlargement, then the candidates, best first, with one measure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from restoration.evaluation.measuring import bicubic
from restoration.selection.candidates import Candidate, Explanation
from restoration.selection.pool import BICUBIC
from zoomiqa_reward.images.contact_sheet import SheetEntry, SheetWords, contact_sheet
from zoomiqa_reward.images.loading import load_image, to_pil

SHEET_CANDIDATES = 24
"""Most candidates on the contact sheet, best first: its memory stays bounded however many were drawn."""


def sheet_of(order: Sequence[Candidate], report: Mapping[str, Any], image_lq: Image.Image | None) -> Image.Image:
    """Return the sheet. order: all candidates, best first. report: the content of run.json.

    The first reward's score stands under all candidates, the cascade's as a second number where it was asked.
    """
    shown = order[:SHEET_CANDIDATES]
    images = [_opener(item) if item.has_image() else None for item in shown]
    entries = [_entry(item) for item in shown]
    return contact_sheet(images, entries, words=words_of(order, report), before=_before(shown, image_lq))


def words_of(order: Sequence[Candidate], report: Mapping[str, Any]) -> SheetWords:
    """Return the names of the two measures, and the sentence that says how the candidates are ordered."""
    name = str(report["settings"]["reward"]["name"])
    arguments = report["arguments"]
    tie = arguments.get("tie", 0.0)
    is_rating = arguments.get("measure", "rating" if tie > 0 else "score") == "rating"
    cascade = arguments.get("cascade")
    again = sum(not math.isnan(item.cascade_score) for item in order)
    what = f"{name}: 1 bad to 5 excellent, ± standard deviation" if is_rating else f"{name}, higher is better"
    parts = [f"{len(order)} candidates, best first, by {what}."]
    second = "reason" if cascade and str(cascade["reward"]).endswith("-reason") else "second"
    if again:
        first = "The first was scored again" if again == 1 else f"The first {again} were put in order"
        parts.append(f"{first} by {cascade['reward'] if cascade else 'a second reward'}.")
    if len(order) > SHEET_CANDIDATES:
        parts.append(f"The best {SHEET_CANDIDATES} are shown.")
    return SheetWords(
        title=" ".join(parts), measure="rating" if is_rating else "score", second=second, is_second_first=again > 0,
        tie=tie, digits=2 if tie > 0 else 4,
    )  # fmt: skip


def _before(shown: Sequence[Candidate], image_lq: Image.Image | None) -> list[tuple[Any, SheetEntry]]:
    """Return the input at the size of the candidates, and bicubic where it is no candidate itself."""
    sized = next((item for item in shown if item.has_image()), None)
    if image_lq is None or sized is None:
        return []
    size = sized.image.size
    factor = size[0] / image_lq.width
    how = f"{image_lq.width} x {image_lq.height} px" + (f", its pixels drawn x{factor:g}" if factor != 1 else "")
    large = image_lq.resize(size, Image.Resampling.NEAREST)
    cards: list[tuple[Any, SheetEntry]] = [(large, SheetEntry(name="input", note=how))]
    scale = round(factor)
    is_whole = scale > 1 and size == (scale * image_lq.width, scale * image_lq.height)
    if is_whole and all(item.restorer != BICUBIC for item in shown):
        enlarged = to_pil(bicubic(load_image(image_lq), scale))
        cards.append((enlarged, SheetEntry(name="bicubic enlargement", note="no candidate, not rated")))
    return cards


def _opener(candidate: Candidate) -> Callable[[], Image.Image]:
    return lambda: candidate.image


def _entry(item: Candidate) -> SheetEntry:
    why = item.explanation or Explanation(rationale="")
    how = [f"seed {item.seed}", f"input sharpened by {item.sharpness:+.2f}" if item.sharpness else "", item.prompt]
    return SheetEntry(
        name=f"candidate {item.index}: {item.restorer}", rating=item.score, std=item.std, second=item.cascade_score,
        rank=item.rank, valid=item.valid, error=item.error, rationale=why.rationale, bbox=why.bbox,
        crop_box=why.crop_box, note=", ".join(text for text in how if text),
    )  # fmt: skip
