"""Planted cases: answers about degraded photographs of which the record of the damage tells whether they are true.

Grounded answers name the record's damage and its region. A planted one is the same answer with one false sentence:
`invented` damage that the record excludes, a `denied` one that it holds, or the `opposite` of what was done to light or
colour. Nothing here reads pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train_iqa.curation.states import DAMAGES, LOOKS, OPPOSITE, degrade_to, knows_absent, state_of
from train_iqa.curation.written import Written
from train_iqa.nano.degradations import Array, DamageRecord, sample_box
from train_iqa.nano.rationale import name_region
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS

from .words import PARAPHRASED, PLAIN, Wordings

LEAST_SEVERITY = 0.4
"""Milder damage is not a fact that a text must get right."""
_NEUTRAL = ("The subject fills a good part of the frame {where}", "The main subject can be recognised {where}")
_WISHES = ("The subject deserves a cleaner rendering", "A better capture would help the subject")


@dataclass(frozen=True, kw_only=True)
class PlantedCase:
    """One answer about one image."""

    image: Tensor
    """Float32 CHW in [0, 1]."""
    record: DamageRecord
    written: Written
    plant: str | None
    """The false sentence; None: everything in the answer is true."""
    kind: str
    """`invented`, `denied`, `opposite`, or `grounded`."""
    is_paraphrased: bool


def plantable(record: DamageRecord) -> list[tuple[str, str, bool]]:
    """Return (kind, state, is_present) of each false claim that the record allows to plant."""
    actual = state_of(record)
    plants = [("invented", state, True) for state in DAMAGES if knows_absent(record, state)]
    if actual is not None:
        plants.append(("denied", actual, False))
        if actual in OPPOSITE:
            plants.append(("opposite", OPPOSITE[actual], True))
    return plants


def make_cases(photographs: Sequence[Array], count: int, *, seed: int = 0) -> list[PlantedCase]:
    """Return `count` images' cases, a grounded and a planted one each; every second image's are paraphrased.

    `photographs`: clean, float32 HWC in [0, 1]; they are used in turn. States take turns too, half of the images are
    damaged in a region only, and one in ten is untouched.
    """
    rng, states = np.random.default_rng(seed), list(LOOKS)
    cases = []
    for index in range(count):
        clean = photographs[index % len(photographs)]
        severity, box = float(rng.uniform(LEAST_SEVERITY, 1.0)), sample_box(rng) if rng.random() < 0.5 else None
        if index % 10 == 9:
            pixels, record = clean, DamageRecord(steps=())
        else:
            # the turn moves on by one each round of photographs, so that one of them is not always damaged alike
            state = states[(index + index // len(photographs)) % len(states)]
            pixels, record = degrade_to(clean, state, severity, rng, box)
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        is_paraphrased = index % 2 == 1
        words = PARAPHRASED if is_paraphrased else PLAIN
        written = _grounded(record, words, rng)
        kind, plant, false = _plant(record, written, words, rng)
        for text, sentence, name in ((written, None, "grounded"), (false, plant, kind)):
            cases.append(
                PlantedCase(
                    image=image, record=record, written=text, plant=sentence, kind=name, is_paraphrased=is_paraphrased
                )
            )
    return cases


def _pick(options: Sequence[str], where: str, rng: np.random.Generator) -> str:
    return f"{options[int(rng.integers(len(options)))].format(where=where)}."


def _grounded(record: DamageRecord, words: Mapping[str, Wordings], rng: np.random.Generator) -> Written:
    where = "over the whole frame" if record.box is None else f"in the {name_region(record.box)}"
    actual = state_of(record)
    absent = [state for state in LOOKS if knows_absent(record, state)]
    other = absent[int(rng.integers(len(absent)))]
    denied = _pick(words[other].absent, where, rng)
    if actual is None:
        summary, issues = (_pick(_NEUTRAL, where, rng), denied), (f"Nothing to name {where}.",)
    else:
        summary = (_pick(words[actual].present, where, rng), _pick(_NEUTRAL, where, rng))
        issues = (_pick(words[actual].present, where, rng), denied)
    box = None if record.box is None else tuple(round(side, 2) for side in record.box)
    decision = "One part differs, so I look there." if box else "The frame is even, so I decide now."
    texts = (summary, (_pick(_WISHES, where, rng),), issues, (decision,))
    worst = max((step.severity for step in record.steps), default=0.0)
    rating = float(np.clip(4.7 - 3.4 * worst + rng.normal(0, 0.1), 1, 5))
    return Written(sections=tuple(zip(ROUND1_SECTIONS, texts, strict=True)), bbox=box, rating=round(rating, 2))


def _plant(
    record: DamageRecord, written: Written, words: Mapping[str, Wordings], rng: np.random.Generator
) -> tuple[str, str, Written]:
    options = plantable(record)
    kind, state, is_present = options[int(rng.integers(len(options)))]
    where = "over the whole frame" if record.box is None else f"in the {name_region(record.box)}"
    choices = words[state].present if is_present else words[state].absent
    sentence = _pick(choices, where, rng)
    place_of = int(rng.choice([0, 2]))  # summary or issues
    sections = list(written.sections)
    label, texts = sections[place_of]
    sections[place_of] = label, (*texts, sentence)
    return kind, sentence, replace(written, sections=tuple(sections))
