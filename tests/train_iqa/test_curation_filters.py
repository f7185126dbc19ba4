"""Precision and recall of both filters on planted cases built from degradation records; `benchmarks/curation.py`'s kin.

The judge is the rules judge. The bounds lie below what is measured on photographs that nothing was chosen on, so that
they fail for a filter that got worse, not for another draw.
"""

import numpy as np
import pytest
from PIL import Image

from benchmarks.planted.cases import PlantedCase, make_cases
from benchmarks.planted.reliance import continuations, reliance_cases
from benchmarks.planted.statistics import filter_statistics
from benchmarks.planted.words import PARAPHRASED, PLAIN
from train_iqa.curation.hints import measure_image
from train_iqa.curation.judges import RulesJudge
from train_iqa.curation.reliance import Continuation, RelianceConfig, compare
from train_iqa.curation.states import LOOKS, knows_absent, state_of
from train_iqa.curation.written import Written, read_written
from zoomiqa_reward.check import bundled_photographs
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS

IMAGES, SIDE_PX = 400, 192


@pytest.fixture(scope="module")
def cases() -> list[PlantedCase]:
    windows = []
    for path in bundled_photographs():
        image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
        for top in range(0, image.shape[0] - SIDE_PX + 1, SIDE_PX):
            windows += [
                image[top : top + SIDE_PX, left : left + SIDE_PX]
                for left in range(0, image.shape[1] - SIDE_PX + 1, SIDE_PX)
            ]
    return make_cases([window for window in windows if window.std() > 0.12], IMAGES)


def statistics(cases, rejected, wanted):
    part = [(case, out) for case, out in zip(cases, rejected, strict=True) if case.is_paraphrased in wanted]
    return filter_statistics([case.plant is not None for case, _ in part], [out for _, out in part])


@pytest.mark.integration
def test_consistency_finds_what_the_record_denies(cases):
    assert sum(case.plant is not None for case in cases) == IMAGES
    judge, rejected, hints = RulesJudge(), [], None
    for case in cases:
        if case.plant is None:  # its planted twin follows, about the same image and box
            hints = measure_image(case.image, case.written.bbox)
        verdicts = judge.verdicts(case.written, hints)
        rejected.append(any(one.verdict == "contradiction" for one in verdicts))
    plain, paraphrased = (statistics(cases, rejected, (which,)) for which in (False, True))
    assert plain["precision"]["value"] > 0.78
    assert plain["recall"]["value"] > 0.9
    assert paraphrased["precision"]["value"] > 0.8
    assert paraphrased["recall"]["value"] > 0.45  # the lexicon's reach; a wording that it does not know passes
    assert 0 < sum(rejected) < len(rejected)


@pytest.mark.integration
def test_reliance_refuses_texts_that_never_saw_the_image_and_keeps_those_that_did(cases):
    """A single blind continuation passed 53 to 80 % of such texts: it was another sample, and lacked the score."""
    found, config = reliance_cases(cases), RelianceConfig()
    assert sum(case.is_planted for case in found) == sum(not case.is_planted for case in found) == IMAGES
    for seed in (0, 1):
        rng, passed = np.random.default_rng(seed), {True: [], False: []}
        for case in found:
            seen, blind = continuations(case, config.samples, rng)
            passed[case.is_planted].append(compare(case.written, seen, blind, config).relied)
        assert np.mean(passed[True]) <= 0.05
        assert np.mean(passed[False]) >= 0.9


@pytest.mark.integration
@pytest.mark.parametrize("rating_of", [round, lambda told: round(2 * told) / 2, float], ids=["level", "half", "exact"])
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.4])
def test_reliance_refuses_a_teacher_that_goes_by_the_told_score_alone(rating_of, spread):
    """Whatever it reads off its own text: 400 told scores, and continuations that stray by `spread`."""
    rng, config, passed = np.random.default_rng(3), RelianceConfig(), 0
    sections = (("Decision & Rationale", ("I decide now.",)),)
    for told in rng.uniform(1.2, 4.8, 400):

        def go_on(told=told):
            value = float(np.clip(rating_of(told) + rng.normal(0, spread), 1, 5))
            return Continuation(written=Written(sections=sections, bbox=None, rating=round(value, 2)))

        kinds = [[go_on() for _ in range(config.samples)] for _ in range(2)]
        answer = Written(sections=sections, bbox=None, rating=round(float(told), 2))
        passed += compare(answer, *kinds, config).relied
    assert passed <= 0.05 * 400


@pytest.mark.integration
def test_cases_tell_the_truth_of_their_record(cases):
    kinds = {case.kind for case in cases}
    assert kinds == {"grounded", "invented", "denied", "opposite"}
    for grounded, planted in zip(cases[::2], cases[1::2], strict=True):
        assert planted.plant not in dict(grounded.written.sections).values()
        said = {one for _, one in planted.written.sentences} - {one for _, one in grounded.written.sentences}
        assert said <= {planted.plant}
        if planted.kind == "invented":
            actual = state_of(grounded.record)
            words = PARAPHRASED if planted.is_paraphrased else PLAIN
            states = [
                state for state in LOOKS
                if any(planted.plant.startswith(one.split(" {where}")[0]) for one in words[state].present)
            ]  # fmt: skip
            assert states
            assert all(state != actual and knows_absent(grounded.record, state) for state in states)
    for case in cases:
        assert read_written(case.written.render(), ROUND1_SECTIONS) == case.written


def test_paraphrases_are_other_sentences():
    for state in LOOKS:
        plain, other = PLAIN[state], PARAPHRASED[state]
        assert not {*plain.present, *plain.absent} & {*other.present, *other.absent}
        assert all("{where}" in one for words in (plain, other) for one in (*words.present, *words.absent))
