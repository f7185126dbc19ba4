"""Pairs for DPO: mined from scored candidates, weighted, and kept in a portable parquet file.

A row names a low-quality image by the hash of its pixels and two candidates by their seeds (or their files), with
their scores and the reward's fingerprint; so pairs can be looked at, merged and used by other code.
Source: DP2O-SR (Wu et al. 2025): best and worst quarter against each other, weights within and between groups.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSource, load_image
from zoomiqa_reward.rewards.normalise import FLAT, group_keys, with_finite_best
from zoomiqa_reward.runs.outputs import replacing

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A better and a worse candidate of one low-quality image."""

    lr_hash: str
    """Its group key: sha256 of the LR pixels and the prompt, 16 digits."""
    prompt: str
    seed_winner: int
    seed_loser: int
    score_winner: float
    """By the reward, as it came."""
    score_loser: float
    value_winner: float
    """Min-max normalised in its group, 0 worst .. 1 best."""
    value_loser: float
    group_std: float
    """Population standard deviation of the normalised values of its group."""
    reward: str
    """Fingerprint."""
    weight: float = 1.0
    file_winner: str | None = None
    """The candidate's image, where it comes from a folder."""
    file_loser: str | None = None


def mine_pairs(
    scores: Sequence[float], seeds: Sequence[int], *, lr_hash: str, prompt: str = "", reward: str = "",
    share: float = 0.25, files: Sequence[str] | None = None, probabilities: Tensor | None = None,
    min_probability: float = 0.0,
) -> list[PreferencePair]:  # fmt: skip
    """Return each of the best `share` against each of the worst, at least one per side; `weigh_pairs` sets the weights.

    scores: higher is better, NaN where not measured (left out). A group without spread, or with fewer than two scores,
    gives none. probabilities: [scores, scores] that the row is better than the column (`pair_probabilities`); pairs
    below `min_probability` are left out. Raises ValueError for a share outside (0, 0.5], and for a
    `min_probability` without probabilities.
    """
    if min_probability > 0 and probabilities is None:
        raise ValueError(f"min_probability={min_probability} needs probabilities=; `pair_probabilities` makes them")
    if not 0 < share <= 0.5:
        raise ValueError(f"share={share}: must be above 0 and at most 0.5, or winners would be losers too")
    scores = with_finite_best(torch.tensor(scores, dtype=torch.float64)).tolist()
    order = sorted((k for k, score in enumerate(scores) if math.isfinite(score)), key=lambda k: (-scores[k], k))
    if len(order) < 2:
        return []
    top, bottom = scores[order[0]], scores[order[-1]]
    if top - bottom <= FLAT * max(1.0, abs(top)):
        return []
    values = {k: (scores[k] - bottom) / (top - bottom) for k in order}
    spread = float(torch.tensor(list(values.values()), dtype=torch.float64).std(correction=0))
    side = max(1, int(share * len(order)))
    return [
        PreferencePair(
            lr_hash=lr_hash, prompt=prompt, seed_winner=seeds[w], seed_loser=seeds[l], score_winner=scores[w],
            score_loser=scores[l], value_winner=values[w], value_loser=values[l], group_std=spread, reward=reward,
            file_winner=None if files is None else files[w], file_loser=None if files is None else files[l],
        )
        for w in order[:side] for l in order[-side:]  # noqa: E741
        if values[w] > values[l] and (probabilities is None or float(probabilities[w, l]) >= min_probability)
    ]  # fmt: skip


def weigh_pairs(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return the pairs with their weights, (gap + 1 - mean gap) * (std + 1 - mean std), std that of the group.

    Each of the two factors averages 1 over the pairs. Raises ValueError where a weight would be negative: the gaps or
    spreads differ too much, so that pairs would be learned the wrong way round.
    """
    if not pairs:
        return []
    gaps = [pair.value_winner - pair.value_loser for pair in pairs]
    mean_gap = sum(gaps) / len(gaps)
    mean_std = sum(pair.group_std for pair in pairs) / len(pairs)
    weights = []
    for pair, gap in zip(pairs, gaps, strict=True):
        within, between = gap + (1 - mean_gap), pair.group_std + (1 - mean_std)
        if within < 0 or between < 0:
            raise ValueError(f"pair of {pair.lr_hash}: weights {within:.3f} and {between:.3f}; none may be negative")
        weights.append(replace(pair, weight=within * between))
    return weights


def write_pairs(file: Path, pairs: Sequence[PreferencePair], *, overwrite: bool = False, **facts: Any) -> Path:
    """Write the pairs as parquet, in one step; `facts` (JSON values) go to the file's header.

    Raises OutputError where the file lies in no run's folder and is there already (unless `overwrite`), ImportError
    without pyarrow.
    """
    arrow, parquet = _pyarrow()
    kinds = {"str": arrow.string(), "int": arrow.int64(), "float": arrow.float64()}
    schema = arrow.schema(
        [
            (entry.name, kinds[str(getattr(entry.type, "__name__", entry.type)).split(" ")[0]])
            for entry in fields(PreferencePair)
        ],
        metadata={"zoomiqa_pairs": json.dumps({"format": FORMAT, **facts})},
    )
    table = arrow.Table.from_pylist([asdict(entry) for entry in pairs], schema=schema)
    with replacing(file, overwrite=overwrite) as half:
        parquet.write_table(table, half)
    return file


def read_pairs(file: Path) -> tuple[list[PreferencePair], dict[str, Any]]:
    """Return the pairs of a file and its header. Raises ValueError for a file of another kind, ImportError."""
    _, parquet = _pyarrow()
    table = parquet.read_table(file)
    header = (table.schema.metadata or {}).get(b"zoomiqa_pairs")
    missing = {field.name for field in fields(PreferencePair)} - set(table.column_names)
    if header is None or missing:
        raise ValueError(f"{file} is no pair file: {'no header' if header is None else f'no column {min(missing)}'}")
    names = [field.name for field in fields(PreferencePair)]
    return [PreferencePair(**{name: row[name] for name in names}) for row in table.to_pylist()], json.loads(header)


def pairs_from_best_of_n(
    folder: Path, image_lq: ImageSource, *, prompt: str = "", share: float = 0.25
) -> list[PreferencePair]:
    """Return the pairs of a finished or unfinished best-of-N folder, unweighted, with the files of its images.

    image_lq: the image that it restored. prompt: as the tuning run will call it. Candidates that are copies of
    another, or were not measured, are left out. After a cascade the order is that of the run: the two rewards have two
    scales, so the scores are the ranks, negated. Raises ValueError where `image_lq` is another image, and where a
    cascade has begun whose run is not finished.
    """
    from restoration.selection.best_of_n import image_digest
    from zoomiqa_reward.runs.json_lines import as_float, read_lines

    image = load_image(image_lq)
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    settings = report["settings"]
    if settings["image"] != image_digest(image.detach().cpu()):
        raise ValueError(f"{folder} restored another image than the one given: their pixels differ")
    rows = [
        row for row in read_lines(folder / "candidates.jsonl")
        if row["valid"] and row["file"] is not None and row["same_as"] is None
    ]  # fmt: skip
    [key] = group_keys([image], [prompt])
    scores, reward = [as_float(row["score"]) for row in rows], settings["reward"]["fingerprint"]
    if cascaded := read_lines(folder / "cascade.jsonl"):
        if "ranking" not in report:
            raise ValueError(
                f"{folder}: a second reward has scored some candidates, and the run was not finished, so their order "
                "is not known; run the same best-of-N again to finish it"
            )
        ranking = {entry["index"]: entry for entry in report["ranking"]}
        if any(entry["cascade_score"] is not None for entry in ranking.values()):
            rows = [row for row in rows if row["index"] in ranking]
            scores = [-float(ranking[row["index"]]["rank"]) for row in rows]
            reward = f"{reward}, then {cascaded[-1]['reward']}"
    return mine_pairs(
        scores, [row["seed"] for row in rows], lr_hash=key, prompt=prompt, share=share, reward=reward,
        files=[str(folder / row["file"]) for row in rows],
    )  # fmt: skip


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("pair files need pyarrow: pip install 'zoomiqa-reward[restoration]'") from error
    return pyarrow, pyarrow.parquet
