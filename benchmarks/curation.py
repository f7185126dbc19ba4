"""Precision and recall of the curation's two filters on planted cases, from degraded photographs it was not tuned on.

python benchmarks/curation.py --images DIR [--count 400] [--seed 1]

The judge is the rules judge: no model takes part. Consistency: each image has a grounded answer and the same with one
false sentence, both written from the degradation record; half of the images in plain words, half paraphrased
(`benchmarks/planted/words.py`). A case counts as rejected where a sentence of it is dropped or all of it is
refused. Reliance: the grounded answers of a scripted teacher that sees, and plants of one without eyes, which follow
from their own text; both are sampled several times with and without the image, and stray
(`benchmarks/planted/reliance.py`).
"""

import argparse
import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from PIL import Image
from planted import words
from planted.cases import PlantedCase, make_cases
from planted.reliance import BOX_SPREAD, RATING_SPREAD, continuations, reliance_cases
from planted.statistics import filter_statistics
from tqdm import tqdm

from train_iqa.curation import lexicon
from train_iqa.curation.hints import measure_hints, measure_image
from train_iqa.curation.judges import RulesJudge
from train_iqa.curation.reliance import RelianceConfig, compare
from train_iqa.curation.states import state_of
from train_iqa.curation.thresholds import shipped
from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward.runs.json_lines import plain


def judged(cases: Sequence[PlantedCase]) -> list[tuple[int, int, bool]]:
    """Return for each case how many sentences were contradicted, how many of these are true, and the plant's fate."""
    judge, found, whole = RulesJudge(), [], {}
    for case in tqdm(cases, desc="consistency"):
        if id(case.image) not in whole:
            whole = {id(case.image): measure_image(case.image, case.written.bbox)}
        verdicts = judge.verdicts(case.written, whole[id(case.image)])
        wrong = [
            sentence
            for (_, sentence), one in zip(case.written.sentences, verdicts, strict=True)
            if one.verdict == "contradiction"
        ]
        found.append((len(wrong), sum(one != case.plant for one in wrong), case.plant in wrong))
    return found


def consistency(cases: Sequence[PlantedCase]) -> dict[str, Any]:
    """Return the filter's figures, over answers and over the planted sentences alone."""
    decisions, result = judged(cases), {}
    for name, wanted in (("all", (False, True)), ("plain", (False,)), ("paraphrased", (True,))):
        part = [(case, one) for case, one in zip(cases, decisions, strict=True) if case.is_paraphrased in wanted]
        planted = [case.plant is not None for case, _ in part]
        kinds = [case.kind for case, _ in part]
        caught = [one[2] for case, one in part if case.plant is not None]
        true_sentences = sum(len(case.written.sentences) - (case.plant is not None) for case, _ in part)
        result[name] = {
            "answers": filter_statistics(planted, [one[0] > 0 for _, one in part], kinds),
            "planted_sentences_caught": {"hits": sum(caught), "of": len(caught)},
            "true_sentences_contradicted": {"hits": sum(one[1] for _, one in part), "of": true_sentences},
        }
    states = [state_of(case.record) or "untouched" for case in cases]
    grounded = [
        (state, one[0] > 0) for state, case, one in zip(states, cases, decisions, strict=True) if not case.plant
    ]
    result["false_alarms_by_state"] = {
        state: f"{sum(out for s, out in grounded if s == state)} of {sum(s == state for s, _ in grounded)}"
        for state in sorted(set(states))
    }
    return result


def reliance(cases: Sequence[PlantedCase], seed: int) -> dict[str, Any]:
    """Return the filter's figures against the scripted teacher, whose continuations stray."""
    config, found, result = RelianceConfig(), reliance_cases(cases, seed=seed), {}
    rng, rejected = np.random.default_rng(seed), []
    for case in tqdm(found, desc="reliance"):
        seen, blind = continuations(case, config.samples, rng)
        rejected.append(not compare(case.written, seen, blind, config).relied)
    for name, wanted in (("all", (False, True)), ("plain", (False,)), ("paraphrased", (True,))):
        part = [(case, out) for case, out in zip(found, rejected, strict=True) if case.is_paraphrased in wanted]
        result[name] = filter_statistics(
            [case.is_planted for case, _ in part], [out for _, out in part], [case.kind for case, _ in part]
        )
    without = [out for case, out in zip(found, rejected, strict=True) if not case.is_planted and not case.written.bbox]
    result["false_alarms_without_box"] = {"hits": sum(without), "of": len(without)}
    result["samples"], result["significance"] = config.samples, config.significance
    result["spread"] = {"rating": RATING_SPREAD, "box": BOX_SPREAD}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--count", type=int, default=400, help="degraded images; a planted case each")
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    photographs = []
    for path in list_photographs(args.images)[: args.photographs]:
        with Image.open(path) as photograph:
            photographs.append(np.asarray(photograph.convert("RGB"), dtype=np.float32) / 255)
    cases = make_cases(photographs, args.count, seed=args.seed)
    began = time.perf_counter()
    for case in cases[:20]:
        measure_hints(case.image)
    seconds = (time.perf_counter() - began) / 20
    result = {
        "judge": "rules",
        "photographs": len(photographs),
        "images": args.count,
        "planted_cases": sum(case.plant is not None for case in cases),
        "hint_thresholds": dict(shipped().provenance),
        "sha256": {Path(m.__file__).name: _digest(m.__file__) for m in (lexicon, words)},
        "consistency": consistency(cases),
        "reliance": reliance(cases, args.seed),
        "hint_seconds_an_image": round(seconds, 4),
    }
    write_result("curation", _rounded(plain(result)))


def _digest(file: str | None) -> str:
    return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()[:16]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    main()
