"""Best of N in words: what a reward that answers says of a candidate, kept in the folder and shown on the sheet."""

import math

import numpy as np
import pytest
import torch
from brightness_runs import LQ, brightness, shifted
from PIL import Image

from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.candidates import Explanation
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images.contact_sheet import SheetEntry, contact_sheet
from zoomiqa_reward.model.ratings import Assessment, Scores
from zoomiqa_reward.model.turns import Turn
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

BBOX, CROP = (0.25, 0.5, 0.75, 1.0), (8, 12, 24, 24)


def turn(text, **options):
    known = {"prompt": "?", "text": text, "sections": {"Decision": text}, "bbox": None, "crop_box": None,
             "tool": None, "rating": 2.0}  # fmt: skip
    return Turn(**(known | options))


class Talking:
    """A reward that answers in two rounds; the darker the better."""

    name, fingerprint, score_range = "talking", "t1", (0.0, 1.0)
    higher_is_better, differentiable, deterministic, needs = True, False, True, frozenset()

    def __init__(self):
        self.asked = 0

    def __call__(self, images, lq=None, hr=None, prompts=None):
        self.asked += 1
        value = torch.tensor([1 - float(image.mean()) for image in images])
        turns = turn("first", bbox=BBOX), turn("darker is better", crop_box=CROP)
        answer = Assessment(rating=3.0, std=math.nan, turns=turns, valid=True)
        count = len(value)
        return Scores(
            value=value, valid=value > -1, std=value * math.nan, errors=(None,) * count, answers=((answer,),) * count
        )


def test_what_the_cascade_says_is_kept_and_read_again(tmp_path):
    def run():
        talking = Talking()
        cascade = Cascade(reward=talking, top=2)
        found = best_of_n(shifted, LQ, brightness(), n=5, out=tmp_path, cascade=cascade, progress=False)
        return found, talking.asked

    (first, asked), (again, asked_again) = run(), run()
    assert (asked, asked_again) == (2, 0)
    for result in (first, again):
        explained = [one for one in result.candidates if one.explanation is not None]
        assert sorted(one.rank for one in explained) == [1, 2]
        assert explained[0].explanation == Explanation(rationale="darker is better", bbox=BBOX, crop_box=CROP)


def test_what_the_reward_itself_says_is_kept(tmp_path):
    result = best_of_n(shifted, LQ, Talking(), n=3, out=tmp_path, progress=False)
    again = best_of_n(shifted, LQ, Talking(), n=3, out=tmp_path, progress=False)
    for found in (result, again):
        assert {one.explanation.rationale for one in found.candidates} == {"darker is better"}
        assert {one.explanation.crop_box for one in found.candidates} == {CROP}


def test_the_sheet_shows_the_region(tmp_path):
    best_of_n(shifted, LQ, brightness(), n=2, out=tmp_path / "plain", progress=False)
    best_of_n(shifted, LQ, brightness(), n=2, out=tmp_path / "told", cascade=Cascade(reward=Talking()), progress=False)
    orange = []
    for name in ("plain", "told"):
        with Image.open(tmp_path / name / "sheet.png") as sheet:
            orange.append(int((np.asarray(sheet) == (255, 176, 32)).all(axis=2).sum()))
    assert orange[0] == 0
    assert orange[1] > 500


def test_images_of_a_sheet_are_opened_one_at_a_time():
    opened = []

    def opener(k):
        def open_it():
            opened.append(k)
            return Image.new("RGB", (8, 8), (k, k, k))

        return open_it

    entries = [SheetEntry(name=str(k), rating=float(k)) for k in range(1, 4)]
    lazy = contact_sheet([opener(k) for k in range(1, 4)], entries)
    eager = contact_sheet([Image.new("RGB", (8, 8), (k, k, k)) for k in range(1, 4)], entries)
    assert opened == [3, 2, 1]
    assert lazy.tobytes() == eager.tobytes()


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_the_reward_hands_out_its_answers(nano, photograph, mode):
    scores = ZoomIQAReward(ZoomIQA.from_pretrained(nano), mode=mode)([photograph, "missing.png"])
    if mode == "direct":
        assert scores.answers is None
        return
    given, missing = scores.answers
    assert missing == ()
    assert Explanation.of(given[0]).rationale
    assert Explanation.of(None) is None
