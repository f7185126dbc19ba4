"""Best of N: draw N restorations of one image, score each as it comes, keep the best.

Candidate k comes from restorer and prompt k modulo the pool's size, with the seed `candidate_seed(seed, k)`: in strict
mode it is the same image whatever N, batch size or order. What is scored is the 8-bit image, as its PNG holds it.
"""

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.restorer.loading import RestorerSource
from restoration.restorer.restorer import Restorer
from restoration.selection.candidate_loop import CandidateLoop, CandidateSource, require_draws, require_texts
from restoration.selection.candidates import Candidate, are_identical, ranked
from restoration.selection.early_stop import EarlyStop
from restoration.selection.pool import BICUBIC
from restoration.selection.result import BestOfN, DrawFolder, open_run, write_artefacts
from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import ImageSource, conversions, load_image, to_pil
from zoomiqa_reward.images.sheet_entry import RATING_TIE
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, find_part
from zoomiqa_reward.rewards.consensus import ConsensusReward
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.json_lines import plain
from zoomiqa_reward.runs.provenance import provenance
from zoomiqa_reward.runs.settings import identity_of
from zoomiqa_reward.whole_numbers import whole_numbers


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A second, expensive reward for the few best candidates of the first one."""

    reward: Reward
    top: int = 3
    """Number of different images that it scores. They come before all others, in its order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "top", whole_numbers(top=self.top)[0])
        if self.top < 1:
            raise ValueError(f"top={self.top}: must be at least 1")


def best_of_n(
    restorer: RestorerSource | Restorer | Sequence[RestorerSource | Restorer], image_lq: ImageSource, reward: Reward,
    n: int = 8, seed: int = 0, *, out: str | os.PathLike[str] | None = None, keep: int = 4,
    batch_size: int = 1, strict: bool = True, prompts: str | Sequence[str] | None = None,
    early_stop: EarlyStop | None = None, cascade: Cascade | None = None, hr: ImageSource | None = None,
    progress: bool = True, reward_prompt: str | None = None,
) -> BestOfN:  # fmt: skip
    """Return N candidate restorations of `image_lq` in the order of a reward.

    restorer: a `Restorer`, anything that `Restorer.from_pretrained` takes, or a list of those, as `varied_pool` makes.
    Bicubic takes part in that pool, and `notes` report it if it wins. prompts: one text or several. Candidates run
    through the pool: all restorers with the first prompt, then with the second, and so on.
    reward: any `Reward`; it gets the low-quality image, `hr` and the candidate's prompt, even if the restorer takes
    none. reward_prompt: text for the reward in place of those prompts. A reward that compares images within a
    group (a `CompositeReward` with normalised terms) scores the whole pool together, after the last candidate; early
    stopping then calls it again at every step, so cache its terms. cascade: a second reward for the best candidates.
    keep: number of different images in memory, the best ones. The others are read from `out`, or dropped without it.
    out: folder, created if missing. If it holds this run, the run continues, also with another `n`; no candidate is
    made or scored twice. early_stop: when to stop before n (rule and formula: `early_stop.py`).
    strict, batch_size: see `Restorer.restore`.

    A candidate is not valid, and comes last with its reason, if it cannot be made or measured, or if it shows nothing
    (`images.content`) although `image_lq` does. It is not tried again. If all candidates are the same image, as with a
    deterministic restorer (which runs once), you get a warning and a note.

    Raises ValueError for numbers out of range, a missing hr, a reward that needs a text where none is given, a folder
    of another run; TypeError for a number that is not whole; ImageError; what a reward raises.
    """
    n, keep, seed, batch_size = whole_numbers(n=n, keep=keep, seed=seed, batch_size=batch_size)  # as run.json has them
    require_order("best_of_n(restorer, image_lq, reward)", judges={"reward": reward}, images={"image_lq": image_lq})
    stages = [reward] if cascade is None else [reward, cascade.reward]
    require_draws(stages, n=n, seed=seed, keep=keep, batch_size=batch_size, has_hr=hr is not None)
    image = load_image(image_lq).detach().cpu()
    given = {"lq": image, "hr": None if hr is None else load_image(hr).detach().cpu()}
    sources = pool(restorer, prompts)
    require_texts(stages if reward_prompt is None else [], sources)
    batch = None if strict else batch_size
    settings = settings_of(sources, given, reward, seed, batch, is_kept=out is not None, reward_prompt=reward_prompt)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(open_run(Path(out), settings))
        held = keep if cascade is None or folder is not None else max(keep, cascade.top)
        drawing = CandidateLoop(sources, given, reward, seed, folder, held, batch, reward_prompt)
        stopped = drawing.draw(n, early_stop, progress=progress)
        if cascade is not None:
            drawing.ask_again(cascade.reward, cascade.top)
        drawing.forget()
        candidates = tuple(ranked(drawing.candidates))
        notes = tuple(result_notes(candidates, sources, n, early_stop if stopped else None))
        if folder is not None:
            notes += tuple(left_notes(folder, len(candidates), is_cascaded=cascade is not None))
        if (nothing := contentless(image)) is not None:
            notes += (f"restorations that show nothing are scored too, as the input shows nothing: {nothing}",)
        notes += tuple(f"the input: {note}" for note in conversions(image_lq))
        arguments = {
            "n": n, "keep": keep, **measure_of(reward),
            "early_stop": None if early_stop is None else asdict(early_stop),
            "cascade": None if cascade is None else {"reward": cascade.reward.name, "top": cascade.top},
        }  # fmt: skip
        report = report_of(candidates, settings, arguments, notes, time.monotonic() - began)
        result = BestOfN(candidates=candidates, identical=are_identical(candidates), stopped_early=stopped, notes=notes,
                         report=report, image_lq=to_pil(image))  # fmt: skip
        if folder is not None:
            write_artefacts(result, folder.folder)
    if result.identical:
        warnings.warn(notes[0], stacklevel=2)
    return result


def pool(
    restorer: RestorerSource | Restorer | Sequence[RestorerSource | Restorer], prompts: str | Sequence[str] | None
) -> list[CandidateSource]:
    """Return the restorers with each of the prompts. Raises ValueError for an empty pool."""
    given: list[Any] = list(restorer) if isinstance(restorer, list | tuple) else [restorer]
    texts = [None] if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
    if not given or not texts:
        raise ValueError(f"{len(given)} restorers and {len(texts)} prompts: at least one of each is needed")
    restorers = [item if hasattr(item, "restore") else Restorer.from_pretrained(item) for item in given]
    return [CandidateSource(restorer=item, prompt=text) for text in texts for item in restorers]


def settings_of(
    sources: list[CandidateSource], given: dict[str, Tensor | None], reward: Reward, seed: int, batch: int | None, *,
    is_kept: bool = True, reward_prompt: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return everything that a candidate and its score depend on. A folder with other settings is another run.

    The number of candidates, early stopping and the cascade are left out: they change no candidate.
    """
    prints = {id(source.restorer): known_identity(source.restorer, is_kept=is_kept) for source in sources}
    return {
        "image": image_digest(given["lq"]), "hr": image_digest(given["hr"]),
        "sources": [
            {"restorer": prints[id(source.restorer)], "prompt": source.prompt} for source in sources
        ],
        "reward": known_identity(reward, is_kept=is_kept),
        "seed": seed, "strict": batch is None, "batch_size": batch,
    } | ({} if reward_prompt is None else {"reward_prompt": reward_prompt})  # fmt: skip


def measure_of(reward: Reward) -> dict[str, object]:
    """Return what the sheet calls a reward's numbers, `rating` or `score`, and the largest difference that is a tie."""
    inner = reward.reward if isinstance(reward, ConsensusReward) else reward
    model_reward = find_part(inner, ZoomIQAReward)
    is_rating = model_reward is not None and inner.score_range == model_reward.score_range
    return {
        "measure": "rating" if is_rating and inner is reward else "score", "tie": RATING_TIE if is_rating else 0.0,
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
    """Yield notes that a reader of the result needs; identical candidates come first."""
    count = len(candidates)
    if are_identical(candidates):
        fixed = sorted({entry.restorer.name for entry in sources if entry.restorer.deterministic})
        why = f"{', '.join(fixed)} takes no seed" if fixed else "their restorer does not use its seed"
        yield (
            f"all {count} candidates are the same image ({why}): there is nothing to choose; draw from a stochastic "
            "restorer, from several, or with vary_sharpness"
        )
    elif any(entry.rank == 1 and entry.restorer == BICUBIC for entry in candidates):
        yield "bicubic was chosen: by this reward no restoration of this image is better than doing nothing"
    if early_stop is not None:
        yield (
            f"stopped after {count} of {n}: one more is expected to raise the best score by less than "
            f"{early_stop.min_gain}"
        )
    for what, failed in (
        ("made", [entry for entry in candidates if entry.pixels is None]),
        (
            "measured",
            [entry for entry in candidates if entry.pixels is not None and not entry.valid and not _empty(entry)],
        ),
    ):
        if failed:
            yield f"{len(failed)} of {count} could not be {what}; the first: {failed[0].error}"
    if empty := [entry for entry in candidates if _empty(entry)]:
        yield f"{len(empty)} of {count} are never chosen; the first: {empty[0].error}"


def left_notes(folder: DrawFolder, count: int, *, is_cascaded: bool) -> Iterator[str]:
    """Yield what lies in a folder from other calls and takes no part in this one."""
    if more := len([index for index in folder.done if index >= count]):
        yield f"the choice is among the first {count} candidates; {more} more lie in the folder, ask for them with n"
    if folder.cascaded and not is_cascaded:
        yield "the order is that of the first reward; scores of an earlier cascade lie in the folder and are not used"


def _empty(candidate: Candidate) -> bool:
    return candidate.error is not None and candidate.error.startswith(PREFIX)


def report_of(
    candidates: Sequence[Candidate], settings: dict[str, Any], arguments: dict[str, Any], notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of run.json: JSON values only, NaN as null. `seconds` counts this session."""
    shown = sorted(candidates, key=lambda candidate: (candidate.rank is None, candidate.rank or 0, candidate.index))
    return {
        "settings": settings, "arguments": arguments, "notes": list(notes), "identical": are_identical(candidates),
        "ranking": [
            {
                "rank": candidate.rank, "index": candidate.index, "seed": candidate.seed,
                "restorer": candidate.restorer,
                "score": plain(candidate.score), "cascade_score": plain(candidate.cascade_score),
                "error": candidate.error, "cascade_error": candidate.cascade_error,
            }
            for candidate in shown
        ],
        "seconds": round(seconds, 3), "seconds_restoring": round(sum(candidate.seconds for candidate in candidates), 3),
        **provenance("diffusers"),
    }  # fmt: skip


def image_digest(image: Tensor | None) -> str | None:
    if image is None:
        return None
    return digest(f"{tuple(image.shape)}", image.contiguous().numpy().tobytes())
