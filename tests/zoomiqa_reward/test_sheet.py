"""The contact sheet: what is drawn, and where. Images are flat colours, so that pixels tell."""

import math
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from restoration.selection.candidates import Explanation
from zoomiqa_reward.images.contact_sheet import (
    CELL_PX,
    MARGIN_PX,
    SheetEntry,
    SheetWords,
    _numbers,
    contact_sheet,
    entry_of,
    rationale_line,
)
from zoomiqa_reward.images.drawing import DASH_PX
from zoomiqa_reward.images.sheet_card import DETAIL_PX, caption
from zoomiqa_reward.images.sheet_entry import UNREADABLE, best_first, places
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Turn

RED, GREEN, BLUE, BOX = (200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 176, 32)


def flat(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def where(sheet, colour):
    """Left, top, right and bottom of a colour, exclusive at the end."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def reading_order(sheet, *colours):
    """Colours in the order of their cards: row by row."""
    boxes = {colour: where(sheet, colour) for colour in colours}
    return sorted(colours, key=lambda colour: (boxes[colour][1], boxes[colour][0]))


def sheet_of(image, **fields):
    return contact_sheet([image], [SheetEntry(**({"name": "x", "rating": 3.0} | fields))])


def test_best_first_and_failures_last():
    entries = [
        SheetEntry(name="failed", valid=False, error="torn"),
        SheetEntry(name="worse", rating=2.0, rank=2),
        SheetEntry(name="best", rating=3.0, rank=1),
    ]
    sheet = contact_sheet([flat(RED), flat(GREEN), flat(BLUE)], entries)
    assert reading_order(sheet, RED, GREEN, BLUE) == [BLUE, GREEN, RED]


def test_without_ranks_those_without_a_rating_come_last():
    entries = [SheetEntry(name=name, rating=rating) for name, rating in (("a", 2.0), ("b", math.nan), ("c", 3.0))]
    assert best_first(entries) == [2, 0, 1]


def test_infinitely_good_images_are_first_tied_and_have_their_number():
    entries = [entry_of(name, rating=rating) for name, rating in (("a", 2.0), ("b", math.inf), ("c", math.inf))]
    ranked = [entries[k] for k in best_first(entries)]
    assert [entry.name for entry in ranked] == ["b", "c", "a"]
    assert places(ranked, 0.01) == ["#1-2, tied", "#1-2, tied", "#3"]
    assert [_numbers(entry, SheetWords()) for entry in ranked] == [["rating inf"], ["rating inf"], ["rating 2.00"]]


def test_an_image_that_lies_on_its_side_is_drawn_as_it_is_rated():
    stored = Image.new("RGBA", (64, 32), (0, 0, 0, 0))  # white to the judge
    stored.paste((*RED, 255), (0, 0, 32, 32))
    stored.getexif()[0x0112] = 6
    upright = Image.new("RGB", (32, 64), "white")
    upright.paste(RED, (0, 0, 32, 32))
    entry = SheetEntry(name="x", rating=3.0, crop_box=(0, 0, 32, 32))
    assert contact_sheet([stored], [entry]).tobytes() == contact_sheet([upright], [entry]).tobytes()


def test_without_ranks_the_rating_decides():
    entries = [SheetEntry(name=name, rating=rating) for name, rating in (("a", 2.0), ("b", 4.0), ("c", 3.0))]
    sheet = contact_sheet([flat(RED), flat(GREEN), flat(BLUE)], entries)
    assert reading_order(sheet, RED, GREEN, BLUE) == [GREEN, BLUE, RED]


def test_what_comes_before_has_no_place():
    input_card = (flat(RED), SheetEntry(name="input"))
    sheet = contact_sheet([flat(GREEN)], [SheetEntry(name="a", rating=3.0)], before=[input_card])
    assert reading_order(sheet, GREEN, RED) == [RED, GREEN]
    words = [line for line, *_ in caption(SheetEntry(name="input"), "", [], "").lines]
    assert [word for word in words if word] == ["input"]


def test_a_small_image_is_enlarged_by_whole_pixels():
    board = np.indices((50, 50)).sum(0).astype(np.uint8) % 2 * 100 + 100
    image = Image.fromarray(np.stack([board, board * 0, board], axis=-1))
    sheet = np.asarray(sheet_of(image))
    factor = CELL_PX // 50
    left, top = where(sheet, (100, 0, 100))[0], min(where(sheet, (100, 0, 100))[1], where(sheet, (200, 0, 200))[1])
    seen = sheet[top : top + 50 * factor, left : left + 50 * factor]
    assert np.array_equal(seen, np.asarray(image).repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize("size", [(1000, 250), (250, 1000), (3, 900), (1, 1), (CELL_PX, CELL_PX)])
def test_aspect_is_kept(size):
    sheet = np.asarray(sheet_of(flat(RED, size)))
    top = where(sheet, RED)[1]
    column = where(sheet[top : top + 1], RED)
    width = column[2] - column[0]
    image_px = max(1, round(size[1] * CELL_PX / max(size)))
    middle = sheet[top : top + image_px, (column[0] + column[2]) // 2]
    assert width == pytest.approx(max(1, CELL_PX * size[0] / max(size)), abs=1)
    assert (middle == RED).all(-1).sum() > 0.8 * image_px  # the outline of the detail crosses it


def test_all_images_are_drawn_by_one_factor():
    sheet = contact_sheet([flat(RED, (100, 100)), flat(GREEN, (50, 50))], [SheetEntry(name="a"), SheetEntry(name="b")])
    large, small = where(sheet, RED), where(sheet, GREEN)
    assert large[2] - large[0] == 3 * 100
    assert small[2] - small[0] == 3 * 50


def test_a_thumbnail_beside_a_large_image_is_still_seen():
    images = [flat(RED, (1600, 1600)), flat(GREEN, (16, 16))]
    small = where(contact_sheet(images, [SheetEntry(name="a"), SheetEntry(name="b")]), GREEN)
    assert small[2] - small[0] == CELL_PX


def test_the_region_is_outlined_where_it_lies():
    entry = SheetEntry(name="x", rating=3.0, crop_box=(0, 0, 64, 32), bbox=(0.25, 0.5, 0.75, 1.0))
    sheet = contact_sheet([flat(RED, (128, 128))], [entry])
    left, top = where(sheet, RED)[:2]
    outlined = (np.asarray(sheet) == BOX).all(-1)[top:, left:]
    scale = CELL_PX // 128
    assert outlined[32 * scale, 20:60].all()
    assert outlined[20:60, 64 * scale].all()
    dashes = outlined[70 * scale : 70 * scale + 6 * DASH_PX, 32 * scale]  # of the region that was only named
    assert dashes.sum() == 3 * DASH_PX
    assert max(len(list(same)) for _, same in groupby(dashes)) == DASH_PX
    header = (np.asarray(sheet) == BOX).all(-1)[:top, : MARGIN_PX + 26]
    rows = [row[MARGIN_PX:].sum() for row in header if row.sum() > 10]  # upper and lower edges of the legend's samples
    assert rows[:4] == [15] * 4  # dashed: 3 dashes of 5 px
    assert rows[4:8] == [25] * 4


def test_images_of_one_size_show_the_same_detail_enlarged_alike():
    images = [flat(RED, (400, 400)), flat(BLUE, (400, 400))]
    for image in images:
        image.paste(GREEN, (90, 90, 110, 110))
    entries = [SheetEntry(name="a", rating=3.0, rank=1, crop_box=(0, 0, 200, 200)), SheetEntry(name="b", rating=2.0)]
    sheet = np.asarray(contact_sheet(images, entries))
    image_top = where(sheet, RED)[1]
    details = sheet[image_top + CELL_PX + 2 : image_top + CELL_PX + 2 + DETAIL_PX]
    assert (details == GREEN).all(-1).sum() == 2 * 40 * 40


def test_an_image_that_could_not_be_read_still_has_its_place():
    sheet = contact_sheet([None, flat(GREEN)], [SheetEntry(name="a", valid=False), SheetEntry(name="b", rating=1.0)])
    assert where(sheet, GREEN)[0] < sheet.width / 2
    assert sheet.width == 2 * (CELL_PX + MARGIN_PX) + MARGIN_PX


def test_text_of_any_length_stays_in_its_card():
    long = SheetEntry(name="name " * 50, rating=3.0, std=0.5, rank=1, rationale="Pneumono" * 40 + " and so on" * 60)
    short = SheetEntry(name="b", rating=2.0, rank=2)
    both = contact_sheet([flat(RED), flat(GREEN)], [long, short], words=SheetWords(title="so much " * 40))
    top = where(both, RED)[1]
    gap = np.asarray(both.crop((MARGIN_PX + CELL_PX, top, 2 * MARGIN_PX + CELL_PX, both.height)))
    assert (gap == gap[0, 0]).all()


def test_a_file_name_is_written_in_full():
    name = "a_very_long_file_name_" + "0123456789" * 22 + ".png"
    lines = [line for line, *_ in caption(SheetEntry(name=name, rating=3.0), "#1", ["rating 3.00"], "").lines]
    assert name in "".join(lines)


def test_ties_are_named_and_only_the_best_is_green():
    def place(*entries, **options):
        return places([SheetEntry(name="", **entry) for entry in entries], 0.01, **options)

    assert place({"rating": 3.0}, {"rating": 2.99}, {"rating": 2.5}) == ["#1-2, tied", "#1-2, tied", "#3"]
    assert place({"rating": 3.0, "rank": 1}, {"rating": 2.0, "rank": 1}) == ["#1-2, tied"] * 2
    assert place({"rating": 3.0}, {"valid": False}, {"valid": False}) == ["#1", "not rated", "not rated"]
    finalists = ({"rating": 2.3, "second": 2.07}, {"rating": 2.5, "second": 2.06}, {"rating": 2.4}, {"rating": 2.39})
    assert place(*finalists, is_second_first=True) == ["#1-2, tied", "#1-2, tied", "#3-4, tied", "#3-4, tied"]
    decided = ({"rating": 2.5, "second": 2.07}, {"rating": 2.3, "second": 2.07})
    assert place(*decided, is_second_first=True) == ["#1", "#2"]  # equal second ones: the rating put them in order


def test_all_that_are_tied_with_the_best_are_green():
    def colour_of(place):
        return caption(SheetEntry(name="x", rating=3.0), place, [], "").lines[0][2]

    assert colour_of("#1") == colour_of("#1-2, tied") != colour_of("#12") == colour_of("#12-13, tied")


def test_the_text_differs_with_what_it_says():
    def drawn(**fields):
        sheet = contact_sheet([flat(RED)], [SheetEntry(name="x", **fields)])
        return np.asarray(sheet.crop((0, where(sheet, RED)[3], sheet.width, sheet.height))).tobytes()

    shown = [
        drawn(rating=3.0), drawn(rating=3.5), drawn(rating=3.0, std=0.2), drawn(rating=3.0, second=2.0),
        drawn(rating=3.0, rationale="soft"), drawn(rating=3.0, note="seed 1"),
        drawn(valid=False, error="torn"), drawn(valid=False, error="other"),
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
    assert entry.note == ""
    assert entry_of("x", rating=2.5, assessment=assessed(said, valid=False)).note == UNREADABLE
