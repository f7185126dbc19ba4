"""The contact sheet: what is drawn, and where. Images are flat colours, so that pixels tell."""

import math

import numpy as np
import pytest
from PIL import Image

from restoration.selection.candidates import Explanation
from zoomiqa_reward.images.contact_sheet import (
    CELL_PX,
    MARGIN_PX,
    TEXT_PX,
    SheetEntry,
    contact_sheet,
    entry_of,
    rationale_line,
)
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Turn

RED, GREEN, BLUE, BOX = (200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 176, 32)


def flat(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def middle_of(sheet, place, columns=2):
    """Colour at the middle of a place's image."""
    left = MARGIN_PX + place % columns * (CELL_PX + MARGIN_PX)
    top = MARGIN_PX + place // columns * (CELL_PX + TEXT_PX + MARGIN_PX)
    return sheet.getpixel((left + CELL_PX // 2, top + CELL_PX // 2))


def image_of(sheet):
    return np.asarray(sheet.crop((MARGIN_PX, MARGIN_PX, MARGIN_PX + CELL_PX, MARGIN_PX + CELL_PX)))


def test_best_first_and_failures_last():
    entries = [
        SheetEntry(name="failed", valid=False, error="torn"),
        SheetEntry(name="worse", rating=2.0, rank=2),
        SheetEntry(name="best", rating=3.0, rank=1),
    ]
    sheet = contact_sheet([flat(RED), flat(GREEN), flat(BLUE)], entries)
    assert [middle_of(sheet, place) for place in range(3)] == [BLUE, GREEN, RED]


def test_without_ranks_the_rating_decides():
    entries = [SheetEntry(name=name, rating=rating) for name, rating in (("a", 2.0), ("b", 4.0), ("c", 3.0))]
    sheet = contact_sheet([flat(RED), flat(GREEN), flat(BLUE)], entries)
    assert [middle_of(sheet, place) for place in range(3)] == [GREEN, BLUE, RED]


def test_a_small_image_is_enlarged_by_whole_pixels():
    board = Image.fromarray(np.indices((50, 50)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    seen = image_of(contact_sheet([board], [SheetEntry(name="board", rating=3.0)]))
    factor = CELL_PX // 50
    edge = (CELL_PX - 50 * factor) // 2
    inner = seen[edge : edge + 50 * factor, edge : edge + 50 * factor]
    assert np.array_equal(inner[::factor, ::factor], np.asarray(board))
    assert np.array_equal(inner, np.asarray(board).repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize("size", [(1000, 250), (250, 1000), (3, 900), (1, 1), (CELL_PX, CELL_PX)])
def test_aspect_is_kept(size):
    seen = image_of(contact_sheet([flat(RED, size)], [SheetEntry(name="x", rating=3.0)]))
    rows, columns = np.nonzero((seen == RED).all(-1))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) == CELL_PX
    assert min(height, width) == pytest.approx(max(1, CELL_PX * min(size) / max(size)), abs=1)


def test_the_region_is_outlined_where_it_lies():
    entry = SheetEntry(name="x", rating=3.0, crop_box=(0, 0, 64, 32), bbox=(0.25, 0.5, 0.75, 1.0))
    seen = image_of(contact_sheet([flat(RED, (128, 128))], [entry]))
    outlined = (seen == BOX).all(-1)
    scale = CELL_PX // 128
    assert outlined[32 * scale, 20:60].all()
    assert outlined[20:60, 64 * scale].all()
    assert outlined[70 * scale : 80 * scale, 32 * scale].all()


def test_the_inset_enlarges_the_middle_of_the_region():
    image = flat(RED, (400, 400))
    image.paste(GREEN, (90, 90, 110, 110))
    seen = image_of(contact_sheet([image], [SheetEntry(name="x", rating=3.0, crop_box=(0, 0, 200, 200))]))
    green = (seen == GREEN).all(-1)[CELL_PX // 2 :, CELL_PX // 2 :]
    assert green.sum() == 40 * 40


def test_an_image_that_could_not_be_read_still_has_its_place():
    sheet = contact_sheet([None, flat(GREEN)], [SheetEntry(name="a", valid=False), SheetEntry(name="b", rating=1.0)])
    assert middle_of(sheet, 0) == GREEN
    assert sheet.width == 2 * (CELL_PX + MARGIN_PX) + MARGIN_PX


def test_text_of_any_length_stays_in_its_card():
    long = SheetEntry(name="name " * 50, rating=3.0, std=0.5, rank=1, rationale="Pneumono" * 40 + " and so on" * 60)
    short = SheetEntry(name="b", rating=2.0, rank=2)
    both = contact_sheet([flat(RED), flat(GREEN)], [long, short])
    gap = np.asarray(both.crop((MARGIN_PX + CELL_PX, 0, 2 * MARGIN_PX + CELL_PX, both.height)))
    assert (gap == gap[0, 0]).all()


def test_the_text_differs_with_what_it_says():
    def caption(**fields):
        sheet = contact_sheet([flat(RED)], [SheetEntry(name="x", **fields)])
        return np.asarray(sheet.crop((0, MARGIN_PX + CELL_PX, sheet.width, sheet.height))).tobytes()

    shown = [
        caption(rating=3.0), caption(rating=3.5), caption(rating=3.0, std=0.2), caption(rating=3.0, rank=1),
        caption(rating=3.0, rationale="soft"), caption(valid=False, error="torn"), caption(valid=False, error="other"),
    ]  # fmt: skip
    assert len(set(shown)) == len(shown)


def test_it_is_written_where_asked(tmp_path):
    sheet = contact_sheet([flat(RED)], [SheetEntry(name="x", rating=3.0)], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(sheet))


@pytest.mark.parametrize(("images", "entries"), [([], []), ([None], [])])
def test_lists_that_do_not_match_are_refused(images, entries):
    with pytest.raises(ValueError, match="contact_sheet"):
        contact_sheet(images, entries)


def turn(**fields):
    empty = {"prompt": "", "text": "raw", "sections": {}, "bbox": None, "crop_box": None, "tool": None}
    return Turn(**(empty | {"rating": 3.0} | fields))


def assessed(*turns, valid=True):
    return Assessment(rating=3.0 if valid else math.nan, std=math.nan, turns=turns, valid=valid)


def test_an_entry_takes_regions_and_reason_from_both_rounds():
    one = turn(bbox=(0.1, 0.2, 0.3, 0.4), sections={"Image Quality Summary": "first"})
    two = turn(crop_box=(1, 2, 3, 4), sections={"Crop Inspection Summary": "closer"}, bbox=(0, 0, 1, 1))
    entry = entry_of("x", rating=2.5, std=0.1, rank=1, assessment=assessed(one, two))
    assert (entry.bbox, entry.crop_box, entry.rationale) == (one.bbox, two.crop_box, "closer")
    assert (entry.rating, entry.valid) == (2.5, True)
    lone = entry_of("x", rating=2.5, assessment=assessed(one))
    assert (lone.bbox, lone.crop_box, lone.rationale) == (one.bbox, None, "first")
    assert not entry_of("x", rating=math.nan).valid


def test_the_line_says_what_is_wrong_and_not_what_was_decided():
    said = {
        "Image Quality Summary": "Strong blur in the\nupper left.",
        "Directions for Improvement": "Crisp detail.",
        "Decision & Rationale": "The damage is even, so one look is enough.",
    }
    assert rationale_line(assessed(turn(sections=said))) == "Strong blur in the upper left."


def test_unreadable_text_is_never_shown_as_an_explanation():
    garbled = turn(text="motion motion <think> motion", sections={})
    said = turn(sections={"Image Quality Summary": "half an answer"}, rating=math.nan)
    assert rationale_line(assessed(garbled)) == ""
    assert rationale_line(assessed(said, valid=False)) == ""
    assert rationale_line(assessed()) == ""
    assert rationale_line(assessed(turn(text="<think>raw\ntext</think><answer>"))) == "raw text"
    entry = entry_of("x", rating=2.5, assessment=assessed(garbled))
    assert (entry.rating, entry.rationale) == (2.5, "")
    assert Explanation.of(assessed(said, valid=False)) is None
