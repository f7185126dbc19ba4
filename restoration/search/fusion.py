"""Fusion: best-of-N, then one image from the best parts of its best candidates.

    start/        the candidates, a folder of best-of-N
    views.jsonl   one line per candidate that takes part: the ratings of its views, appended once they are rated
    fused.png, best.png, run.json    at the end

`best.png` is the fused image where the reward prefers it to the best candidate and it agrees with the low-quality image
no less; otherwise it is that candidate. A kill loses at most the candidate, or the map, that was being made.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from restoration.metrics.fidelity import LR_BORDER_PX, lr_consistency
from restoration.restorer.loading import RestorerSource
from restoration.restorer.restorer import Restorer
from restoration.search.blending import Blend, blended, pixel_weights, view_weights
from restoration.search.noise_search import cost_of
from restoration.selection.best_of_n import best_of_n, known_identity, pool, settings_of
from restoration.selection.candidate_loop import require_draws, require_texts
from restoration.selection.candidates import Candidate, ranked
from restoration.selection.result import BestOfN
from zoomiqa_reward.images.loading import ImageSource, conversions, load_image, save_png, to_pil
from zoomiqa_reward.model.quality_map import quality_map
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.rewards.restorations import ask_restorations
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, as_float, plain, read_lines, write_json
from zoomiqa_reward.runs.progress import progress as progress_of
from zoomiqa_reward.runs.provenance import provenance
from zoomiqa_reward.whole_numbers import whole_numbers

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

    Rater = ZoomIQA | RemoteZoomIQA | Reward

TOP = 4
SOFTNESS_FRAC = 0.01
"""Softness by default, of the width of the reward's range: 0.04 on 1..5."""
LINES = "views.jsonl"


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused:
    """Candidates of one low-quality image, and what was made of the best of them."""

    best: Candidate
    """The best candidate."""
    fused: Image.Image
    """The blended image in 8 bits, whether or not it is the result."""
    score: float
    """Reward of `fused`; NaN if it could not be measured."""
    lr_consistency: float
    """Of `fused`, dB: at least that of `best` if `agrees`."""
    agrees: bool
    sources: tuple[int, ...]
    """Indices of the candidates that take part, best first."""
    ratings: Tensor
    """[sources, views] float32: rating of each view of each candidate; NaN where there is none."""
    weights: Tensor
    """[sources, height, width] float32: how much each pixel takes of each candidate; 1 in sum."""
    is_chosen: bool
    """Whether the fused image agrees and its reward is above that of the best candidate."""
    reason: str
    """Why it was chosen or not."""
    start: BestOfN | None = None
    """Best-of-N, if `fuse` drew the candidates."""
    report: Mapping[str, object] = field(default_factory=dict)
    """The content of run.json, if `fuse` drew the candidates."""

    @property
    def image(self) -> Image.Image:
        """The result: the fused image, or the best candidate."""
        return self.fused if self.is_chosen else self.best.image

    @property
    def best_score(self) -> float:
        """Reward of the result; never below that of the best candidate."""
        return self.score if self.is_chosen else self.best.score


def fuse(
    restorer: RestorerSource | Restorer | Sequence[RestorerSource | Restorer], image_lq: ImageSource, reward: Reward,
    n: int = 8, seed: int = 0, *, top: int = TOP, softness: float | None = None, view_px: int | None = None,
    rater: "Rater | None" = None, out: str | os.PathLike[str] | None = None,
    prompts: str | Sequence[str] | None = None, hr: ImageSource | None = None, progress: bool = True,
) -> Fused:  # fmt: skip
    """Draw N candidates as `best_of_n` does, and blend the `top` best different ones region by region.

    restorer, reward, n, seed, prompts, hr: as in `best_of_n`. The reward orders the candidates and decides between the
    fused image and the best candidate. rater: what rates the views, a ZoomIQA or a Reward that needs nothing but the
    image; None: the reward's own. view_px: side of a view, as in `quality_map`.
    softness: difference of ratings, in the rater's units, that changes the ratio of two weights by e; None: a hundredth
    of the reward's range. A small one takes each region from one candidate; a large one averages.
    out: folder, created if missing. If it holds this run, the run continues, also with a larger `n` or another `top`.

    Cost: N restorations, N + 1 scores, and the ratings of `top` times as many views as the image has.

    Raises ValueError for numbers out of range, candidates of different sizes or none that could be measured, an image
    of less than 5 px on a side, a reward that compares images or needs hr that is not given, a rater that needs more
    than the image, a folder of another run; ImageError; what reward and rater raise.
    """
    n, seed, top = whole_numbers(n=n, seed=seed, top=top)  # as run.json has them
    view_px = None if view_px is None else whole_numbers(view_px=view_px)[0]
    require_order("fuse(restorer, image_lq, reward)", judges={"reward": reward}, images={"image_lq": image_lq})
    require_draws([reward], n=n, seed=seed, has_hr=hr is not None)
    image = load_image(image_lq).detach().cpu()
    softness = _checked(image, reward, top, softness)
    judge = _rater(reward, rater)
    given = {"lq": image, "hr": None if hr is None else load_image(hr).detach().cpu()}
    sources = pool(restorer, prompts)
    require_texts([reward], sources)
    settings = settings_of(sources, given, reward, seed, None, is_kept=out is not None)
    settings |= {"search": "fusion", "rater": known_identity(judge, is_kept=out is not None), "view_px": view_px,
                 "softness": softness}  # fmt: skip
    began = time.monotonic()
    with ExitStack() as stack:
        folder = None if out is None else Path(out)
        if folder is not None:
            stack.enter_context(locked(folder))
            bind(folder, settings, key="settings", results=(LINES,), facts=lambda: {"finished": False})
        restorers = [source.restorer for source in pool(restorer, None)]
        start = best_of_n(
            restorers, image, reward, n, seed, out=None if folder is None else folder / "start", keep=top,
            prompts=prompts, hr=given["hr"], progress=progress,
        )  # fmt: skip
        result = fuse_candidates(
            start.order, image, reward, top=top, softness=softness, view_px=view_px, rater=rater, hr=given["hr"],
            views=None if folder is None else folder / LINES, progress=progress,
            prompt=sources[start.order[0].source].reward_text(start.order[0].prompt, image),
        )  # fmt: skip
        notes = tuple(f"the input: {note}" for note in conversions(image_lq))
        start = replace(start, notes=(*start.notes, *notes))
        result = replace(result, start=start)
        report = _report(result, start, settings, {"n": n, "top": top}, time.monotonic() - began)
        result = replace(result, report=report)
        if folder is not None:
            save_png(result.fused, folder / "fused.png")
            save_png(result.image, folder / "best.png")
            write_json(folder / "run.json", {**report, "finished": True})
    return result


def fuse_candidates(
    candidates: Sequence[Candidate], image_lq: ImageSource, reward: Reward, *, top: int = TOP,
    softness: float | None = None, view_px: int | None = None, rater: "Rater | None" = None,
    hr: ImageSource | None = None, views: Path | None = None, progress: bool = False, prompt: str | None = None,
) -> Fused:  # fmt: skip
    """Blend the `top` best different ones of candidates that are drawn and scored, as `best_of_n` returns them.

    Arguments and exceptions as in `fuse`; the images of these candidates must be in memory or in files.
    views: file of a run's folder with the ratings of views; the views in it are not rated again.
    prompt: text for a reward that needs one; None: that of the best candidate, which has none if its restorer takes
    none. Then such a reward raises ValueError.
    """
    image = load_image(image_lq).detach().cpu()
    softness = _checked(image, reward, top, softness)
    parts = _different(candidates, top)
    text = parts[0].prompt if prompt is None else prompt
    if text is None and "prompts" in reward.needs:
        raise ValueError(f"reward {reward.name!r} needs prompts: pass prompt='what the image shows'")
    images = [load_image(item.image) for item in parts]
    if len({shown.shape for shown in images}) > 1:
        raise ValueError("candidates of different sizes cannot be fused: pass restorers of one scale")
    boxes, ratings = _ratings(_rater(reward, rater), parts, images, view_px, views, progress=progress)
    shares = view_weights(ratings, [item.score for item in parts], softness)
    weights = pixel_weights(shares, boxes, *images[0].shape[1:])
    floor_db = lr_consistency(images[0], image)
    blend = blended(images, weights, image, floor_db)
    scores = ask_restorations(
        reward, [blend.image], lq=[image], hr=None if hr is None else [hr], prompts=None if text is None else [text]
    )
    score = float(scores.value[0]) if bool(scores.valid[0]) else math.nan
    is_chosen = len(parts) > 1 and blend.agrees and score > parts[0].score  # False for NaN
    return Fused(
        best=parts[0], fused=to_pil(blend.image), score=score, lr_consistency=blend.lr_consistency,
        agrees=blend.agrees, sources=tuple(item.index for item in parts), ratings=ratings, weights=weights,
        is_chosen=is_chosen,
        reason=_reason(blend, len(parts), floor_db, parts[0].score, score, scores.reason(0, reward.name)),
    )  # fmt: skip


def _rater(reward: Reward, rater: "Rater | None") -> "Rater":
    """Return what rates the views: by default the reward, or the model behind it."""
    if rater is not None:
        return rater
    return reward.iqa if type(reward) is ZoomIQAReward else reward


def _checked(image: Tensor, reward: Reward, top: int, softness: float | None) -> float:
    """Return the softness. Raises ValueError as `fuse` says."""
    require_pointwise(reward, "the fused image is scored after the candidates")
    low, high = reward.score_range
    if softness is None and not math.isfinite(high - low):
        raise ValueError(f"softness=None: reward {reward.name!r} has no finite range; pass it in the rater's units")
    value = (high - low) * SOFTNESS_FRAC if softness is None else float(softness)
    if top < 1 or not 0 < value < math.inf:
        raise ValueError(f"top={top}, softness={value}: top must be at least 1, softness above 0")
    if min(image.shape[1:]) <= 2 * LR_BORDER_PX:
        raise ValueError(
            f"image_lq: {image.shape[2]} x {image.shape[1]} px, but LR-consistency needs {2 * LR_BORDER_PX + 1} px on "
            "each side"
        )
    return value


def _different(candidates: Sequence[Candidate], top: int) -> list[Candidate]:
    """Return the `top` best candidates that show different images. Raises ValueError where none could be measured."""
    different: dict[str | None, Candidate] = {}
    valid = [item for item in ranked(candidates) if item.valid]
    for candidate in sorted(valid, key=lambda item: (item.rank or 0, item.index)):
        different.setdefault(candidate.pixels, candidate)
    if not different:
        why = candidates[0].error if candidates else "there are none"
        raise ValueError(f"none of {len(candidates)} candidates could be measured; the first: {why}")
    return list(different.values())[:top]


def _ratings(
    rater: "Rater", parts: list[Candidate], images: list[Tensor], view_px: int | None, views: Path | None, *,
    progress: bool,
) -> tuple[tuple[PixelBox, ...], Tensor]:  # fmt: skip
    """Return the views and [candidates, views] of their ratings; recorded views are not rated again."""
    recorded = {} if views is None else {row["pixels"]: row for row in read_lines(views)}
    rows = []
    shown = progress_of(parts, len(parts), "rating views", streaming=False) if progress else parts
    for candidate, image in zip(shown, images, strict=True):
        row = recorded.get(candidate.pixels)
        if row is None:
            quality = quality_map(rater, image, view_px=view_px, strict=True)
            row = plain({
                "candidate": candidate.index, "pixels": candidate.pixels,
                "boxes": [list(box) for box in quality.boxes], "ratings": quality.ratings.mean.tolist(),
                "errors": list(quality.ratings.errors),
            })  # fmt: skip
            if views is not None:
                append_line(views, row)
        rows.append(row)
    boxes = tuple((left, above, right, below) for left, above, right, below in rows[0]["boxes"])
    return boxes, torch.tensor([[as_float(value) for value in row["ratings"]] for row in rows])


def _reason(blend: Blend, count: int, floor_db: float, best: float, score: float, error: str) -> str:
    """Return why the fused image was chosen or not."""
    if count == 1:
        return "one different candidate: there is nothing to fuse"
    if not blend.agrees:
        return f"not chosen: LR-consistency {blend.lr_consistency:.2f} dB, the best candidate's is {floor_db:.2f} dB"
    if math.isnan(score):
        return f"not chosen: {error}"
    if score <= best:
        return f"not chosen: score {score:.3f}, the best candidate has {best:.3f}"
    return (
        f"chosen: score {best:.3f} to {score:.3f}, LR-consistency {floor_db:.2f} to {blend.lr_consistency:.2f} dB "
        f"after {blend.back_projections} back-projections"
    )


def _report(
    result: Fused, start: BestOfN, settings: dict[str, Any], arguments: dict[str, Any], seconds: float
) -> dict[str, Any]:  # fmt: skip
    """Return the content of run.json: JSON values only, NaN as null. `seconds` counts this session."""
    cost = cost_of(start.candidates)
    return plain({
        "settings": settings, "arguments": arguments, "reason": result.reason, "is_chosen": result.is_chosen,
        "score": result.score, "best_candidate_score": result.best.score,
        "lr_consistency": result.lr_consistency, "agrees": result.agrees, "sources": list(result.sources),
        "shares": [round(float(weight.mean()), 4) for weight in result.weights], "notes": list(start.notes),
        "cost": cost | {"scores": cost["scores"] + 1, "view_ratings": result.ratings.numel()},
        "seconds": round(seconds, 3),
    }) | provenance("diffusers")  # fmt: skip
