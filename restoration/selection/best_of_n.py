"""Best of N: draw N restorations of one image, score each as it comes, keep the best.

Candidate k comes from restorer and prompt k modulo the pool's size, with the seed `candidate_seed(seed, k)`: in strict
mode it is the same image whatever N, batch size or order. What is scored is the 8-bit image, as its PNG holds it.
"""

import hashlib
import math
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.restorer.restorer import Restorer
from restoration.selection.candidate_loop import CandidateLoop, CandidateSource
from restoration.selection.candidates import Candidate, are_identical, ranked
from restoration.selection.early_stop import EarlyStop
from restoration.selection.pool import BICUBIC
from restoration.selection.result import BestOfN, open_run, write_artefacts
from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.images.loading import conversions, load_image
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.runs.settings import identity_of

LIBRARIES = ("torch", "torchvision", "transformers", "diffusers", "numpy", "pillow", "zoomiqa-reward")


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A second, expensive reward for the few candidates that the first one likes best."""

    reward: Reward
    top: int = 3
    """Different images that it is asked about; they come before all others, in its order."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top={self.top}: must be at least 1")


def best_of_n(
    restorer: Any, image_lq: Any, reward: Reward, n: int = 8, seed: int = 0, *, out: Any = None, keep: int = 4,
    batch_size: int = 1, strict: bool = True, prompts: str | Sequence[str] | None = None,
    early_stop: EarlyStop | None = None, cascade: Cascade | None = None, hr: Any = None, progress: bool = True,
) -> BestOfN:  # fmt: skip
    """Return N candidate restorations of `image_lq` in the order of a reward.

    restorer: a `Restorer`, anything that `Restorer.from_pretrained` takes, or a list of those, such as `varied_pool`
    makes: bicubic takes part there, and `notes` say so where it is chosen. prompts: a text or several. Candidates go
    round the pool: first all restorers with the first prompt, then with the second, and so on.
    reward: any `Reward`; it gets the LR image, `hr` and the prompts. cascade: a second one for the best. A reward that
    compares images within a group (a `CompositeReward` with normalised terms) scores the whole pool together, after
    the last candidate; early stopping then asks it again at every step, so cache its terms.
    keep: different images held in memory, the best ones; the others lie in `out`, or are dropped without it.
    out: folder, made if missing, resumed if it holds this very run, also with another `n`; then no candidate that is
    there is made or scored again. early_stop: when to stop before n (rule and formula: `early_stop.py`).
    strict, batch_size: see `Restorer.restore`.

    A candidate that cannot be made or measured, or that shows nothing (`images.content`) though `image_lq` does, is
    last, not valid, and says why, whatever the reward; it is not tried again. All of them
    the same, as of a deterministic restorer (which runs once), is a warning and stands in `notes`.

    Raises ValueError for numbers out of range, a missing hr, a folder of another run; ImageError; what a reward
    raises.
    """
    if n < 1 or keep < 1 or seed < 0 or batch_size < 1:
        raise ValueError(f"n={n}, keep={keep}, batch_size={batch_size}, seed={seed}: at least 1, 1, 1 and 0")
    stages = [reward] if cascade is None else [reward, cascade.reward]
    for one in stages:
        if "hr" in one.needs and hr is None:
            raise ValueError(f"reward {one.name!r} needs hr=")
    image = load_image(image_lq).detach().cpu()
    given = {"lq": image, "hr": None if hr is None else load_image(hr).detach().cpu()}
    sources = pool(restorer, prompts)
    settings = settings_of(sources, given, reward, seed, None if strict else batch_size, is_kept=out is not None)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(open_run(Path(out), settings))
        held = keep if cascade is None or folder is not None else max(keep, cascade.top)
        drawing = CandidateLoop(sources, given, reward, seed, folder, held, None if strict else batch_size)
        stopped = drawing.draw(n, early_stop, progress=progress)
        if cascade is not None:
            drawing.ask_again(cascade.reward, cascade.top)
        drawing.forget()
        candidates = tuple(ranked(drawing.candidates))
        notes = tuple(result_notes(candidates, sources, n, early_stop if stopped else None))
        notes += tuple(f"the input: {note}" for note in conversions(image_lq))
        arguments = {
            "n": n, "keep": keep, "early_stop": None if early_stop is None else asdict(early_stop),
            "cascade": None if cascade is None else {"reward": cascade.reward.name, "top": cascade.top},
        }  # fmt: skip
        report = report_of(candidates, settings, arguments, notes, time.monotonic() - began)
        result = BestOfN(candidates=candidates, identical=are_identical(candidates), stopped_early=stopped, notes=notes,
                         report=report)  # fmt: skip
        if folder is not None:
            write_artefacts(result, folder.folder)
    if result.identical:
        warnings.warn(notes[0], stacklevel=2)
    return result


def pool(restorer: Any, prompts: str | Sequence[str] | None) -> list[CandidateSource]:
    """Return the restorers with each of the prompts. Raises ValueError for an empty pool."""
    given = list(restorer) if isinstance(restorer, list | tuple) else [restorer]
    texts = [None] if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
    if not given or not texts:
        raise ValueError(f"{len(given)} restorers and {len(texts)} prompts: at least one of each is needed")
    restorers = [one if hasattr(one, "restore") else Restorer.from_pretrained(one) for one in given]
    return [CandidateSource(restorer=one, prompt=text) for text in texts for one in restorers]


def settings_of(
    sources: list[CandidateSource], given: dict[str, Tensor | None], reward: Reward, seed: int, batch: int | None, *,
    is_kept: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return what a candidate and its score depend on; a folder with other settings is another run.

    The number of candidates, early stopping and the cascade are not in it: they change no candidate.
    """
    prints = {id(one.restorer): known_identity(one.restorer, is_kept=is_kept) for one in sources}
    return {
        "image": image_digest(given["lq"]), "hr": image_digest(given["hr"]),
        "sources": [
            {"restorer": prints[id(one.restorer)], "prompt": one.prompt} for one in sources
        ],
        "reward": known_identity(reward, is_kept=is_kept),
        "seed": seed, "strict": batch is None, "batch_size": batch,
    }  # fmt: skip


def known_identity(part: Any, *, is_kept: bool) -> dict[str, Any]:
    """Return the identity of a reward or restorer; its name alone where its state cannot be read and nothing is kept.

    Raises UnknownState where a folder is to be resumed by it.
    """
    try:
        return identity_of(part)
    except UnknownState:
        if is_kept:
            raise
        return {"name": part.name, "fingerprint": None}


def result_notes(
    candidates: Sequence[Candidate], sources: list[CandidateSource], n: int, early_stop: EarlyStop | None
) -> Iterator[str]:
    """Yield what has to be known to read the result; that all are identical comes first."""
    count = len(candidates)
    if are_identical(candidates):
        fixed = sorted({one.restorer.name for one in sources if one.restorer.deterministic})
        why = f"{', '.join(fixed)} takes no seed" if fixed else "their restorer does not use its seed"
        yield (
            f"all {count} candidates are the same image ({why}): there is nothing to choose; draw from a stochastic "
            "restorer, from several, or with vary_sharpness"
        )
    elif any(one.rank == 1 and one.restorer == BICUBIC for one in candidates):
        yield "bicubic was chosen: by this reward no restoration of this image is better than doing nothing"
    if early_stop is not None:
        yield (
            f"stopped after {count} of {n}: one more is expected to raise the best score by less than "
            f"{early_stop.min_gain}"
        )
    for what, failed in (
        ("made", [one for one in candidates if one.pixels is None]),
        ("measured", [one for one in candidates if one.pixels is not None and not one.valid and not _empty(one)]),
    ):
        if failed:
            yield f"{len(failed)} of {count} could not be {what}; the first: {failed[0].error}"
    if empty := [one for one in candidates if _empty(one)]:
        yield f"{len(empty)} of {count} are never chosen; the first: {empty[0].error}"


def _empty(one: Candidate) -> bool:
    return one.error is not None and one.error.startswith(PREFIX)


def report_of(
    candidates: Sequence[Candidate], settings: dict[str, Any], arguments: dict[str, Any], notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Return what stands in run.json: JSON values only, NaN as null. `seconds` are those of this session."""
    shown = sorted(candidates, key=lambda one: (one.rank is None, one.rank or 0, one.index))
    return {
        "settings": settings, "arguments": arguments, "notes": list(notes), "identical": are_identical(candidates),
        "ranking": [
            {
                "rank": one.rank, "index": one.index, "seed": one.seed, "restorer": one.restorer,
                "score": _number(one.score), "cascade_score": _number(one.cascade_score),
                "error": one.error, "cascade_error": one.cascade_error,
            }
            for one in shown
        ],
        "seconds": round(seconds, 3), "seconds_restoring": round(sum(one.seconds for one in candidates), 3),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "platform": platform.platform(),
    }  # fmt: skip


def image_digest(image: Tensor | None) -> str | None:
    if image is None:
        return None
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()).hexdigest()[:16]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
