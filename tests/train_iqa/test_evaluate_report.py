"""A report from lines, by hand: a failed image between others shifts nothing, and probes belong to their images."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import make_image

from train_iqa.data import LabelledImage
from train_iqa.evaluation import measuring
from train_iqa.evaluation.measuring import Asking, choose_probe_ids
from train_iqa.evaluation.report import report_of
from zoomiqa_reward.images import save_png

MOS = {"a": 3.0, "b": 2.0, "c": 2.5, "d": 2.2, "e": 1.5, "f": 4.5}
RATINGS = {"a": 3.0, "c": 2.0, "d": 4.0, "e": 1.0, "f": 1.2}
REFERENCES = dict(zip("abcdef", ("r0", "r0", "r1", "r1", "r2", "r2"), strict=True))
ROUNDS = {"a": 2, "b": 0, "c": 1, "d": 1, "e": 2, "f": 1}
SAMPLED = {"c": [2.0, 3.0], "d": [3.5, 4.1], "e": [1.0, 1.2]}


def labelled(name: str, path: Path = Path("none.png")) -> LabelledImage:
    return LabelledImage(
        dataset="d", id=name, path=path, mos=MOS[name], std=math.nan, label=MOS[name], reference=REFERENCES[name]
    )


def line(name: str) -> dict[str, object]:
    rating = RATINGS.get(name, math.nan)
    probe = {"repeated": [rating] * 2, "sampled": SAMPLED.get(name), "perturbed": {"jpeg95": rating + 0.1}}
    return {
        "rating": rating, "std": None, "valid": name in RATINGS, "error": None if name in RATINGS else "no rating in x",
        "warning": None, "rounds": ROUNDS[name], "seconds": 1.0, "bbox": None,
    } | ({"probe": probe} if name in SAMPLED else {})  # fmt: skip


def test_a_report_by_hand() -> None:
    lines = {("d", name): line(name) for name in MOS}
    found = report_of([labelled(name) for name in MOS], lines, mode="reason", draws=50)
    assert (found["images"], found["failed"], found["references"]) == (6, 1, 3)
    assert found["errors"] == {"no rating": 1}
    assert found["zoom_rate"] == pytest.approx(2 / 5)  # of those that answered
    # Of one reference lie c and d, in the wrong order by 0.3, and e and f, in the right one by 3; b has no rating.
    assert (found["pairs"]["within_reference_apart_0"]["pairs"], found["pairs"]["all_apart_0"]["pairs"]) == (2, 10)
    assert found["pairs"]["within_reference_apart_0"]["value"] == 0.5
    assert found["pairs"]["within_reference_apart_0.5"]["pairs"] == 1
    assert found["pairs"]["within_reference_apart_0.5"]["value"] == 1
    for changes in (found["robustness"]["jpeg95"][name] for name in ("change_mean", "abs_max")):
        assert changes == pytest.approx(0.1)
    table, mos = np.array(list(SAMPLED.values())), np.array([MOS[name] for name in SAMPLED])
    means, deviations = table.mean(1), np.abs(table[:, 0] - table[:, 1]) / math.sqrt(2)
    calibration = found["std_calibration"]
    assert (calibration["of"], calibration["images"]) == ("samples", 3)
    assert calibration["factor"] == pytest.approx(float(np.sqrt(np.mean(((means - mos) / deviations) ** 2))))


def test_probes_are_drawn_by_the_seed_and_every_sample_has_a_seed_of_its_own(tmp_path: Path) -> None:
    many = [SimpleNamespace(id=str(number)) for number in range(50)]
    assert choose_probe_ids(many, 10, 0) != choose_probe_ids(many, 10, 1)
    seeds = []

    def assess(images: list[object], question: str | None, *, seed: int, **_: object) -> list[SimpleNamespace]:
        seeds.append(seed)
        return [SimpleNamespace(rating=3.0)]

    iqa = SimpleNamespace(
        rate=lambda *_, **__: SimpleNamespace(mean=[3.0]), assess=assess,
        protocol=SimpleNamespace(decoding=SimpleNamespace(temperature=0.7)),
    )  # fmt: skip
    image = labelled("a", save_png(make_image(), tmp_path / "a.png"))
    probe = measuring._probe(iqa, image, Asking(calls=3, seed=5))
    assert seeds == [5, 6, 7]
    assert probe["repeated"] == probe["sampled"] == [3.0] * 3
