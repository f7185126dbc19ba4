"""Fusion: best-of-N, then one image from the best parts of its best candidates.

    start/        the candidates, a folder of best-of-N
    views.jsonl   one line per candidate that takes part: the ratings of its views, appended when they are known
    fused.png, best.png, run.json    at the end

`best.png` is the fused image where the reward prefers it to the best candidate and it agrees with the low-quality image
no less; otherwise it is that candidate. A kill loses at most the candidate, or the map, that was being made.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from restoration.metrics.fidelity import LR_BORDER_PX, lr_consistency
from restoration.restorer.loading import RestorerSource
from restoration.restorer.restorer import Restorer
from restoration.search.blending import blended, pixel_weights, view_weights
from restoration.search.noise_search import cost_of
from restoration.selection.best_of_n import best_of_n, known_identity, pool, settings_of
from restoration.selection.candidates import Candidate
from restoration.selection.result import BestOfN
from zoomiqa_reward.images.loading import ImageSource, load_image, save_png, to_pil
from zoomiqa_reward.model.quality_map import quality_map
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.rewards.restorations import ask_restorations
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, as_float, plain, read_lines, write_json
from zoomiqa_reward.runs.progress import progress as progress_of
from zoomiqa_reward.runs.provenance import provenance

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

    start: BestOfN
    """Best-of-N."""
    fused: Image.Image
    """The blended image in 8 bits, whether or not it is the result."""
    score: float
    """Reward of `fused`; NaN if it could not be measured."""
    lr_consistency: float
    """Of `fused`, dB: at least that of `start.best` if `agrees`."""
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
    report: Mapping[str, object]
    """The content of run.json."""

    @property
    def image(self) -> Image.Image:
        """The result: the fused image, or the best candidate."""
        return self.fused if self.is_chosen else self.start.best.image

    @property
    def best_score(self) -> float:
        """Reward of the result; never below that of the best candidate."""
        return self.score if self.is_chosen else self.start.best.score


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
    image = load_image(image_lq).detach().cpu()
    softness = _checked(image, reward, top, softness)
    judge: Rater = (reward.iqa if type(reward) is ZoomIQAReward else reward) if rater is None else rater
    given = {"lq": image, "hr": None if hr is None else load_image(hr).detach().cpu()}
    sources = pool(restorer, prompts)
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
        parts = _different(start, top)
        images = [load_image(item.image) for item in parts]
        if len({shown.shape for shown in images}) > 1:
            raise ValueError("candidates of different sizes cannot be fused: pass restorers of one scale")
        rows = read_lines(folder / LINES) if folder is not None else []
        maps = _maps(judge, parts, images, rows, view_px, folder, progress=progress)
        result = _fused(start, parts, images, maps, given, reward, softness)
        arguments = {"n": n, "top": top}
        report = report_of_fusion(result, settings, arguments, time.monotonic() - began)
        result = replace(result, report=report)
        if folder is not None:
            save_png(result.fused, folder / "fused.png")
            save_png(result.image, folder / "best.png")
            write_json(folder / "run.json", {**report, "finished": True})
    return result


def _checked(image: Tensor, reward: Reward, top: int, softness: float | None) -> float:
    """Return the softness. Raises ValueError as `fuse` says; n, seed and hr are checked by best-of-N."""
    require_pointwise(reward, "the fused image is scored after the candidates")
    low, high = reward.score_range
    if softness is None and not math.isfinite(high - low):
        raise ValueError(f"softness=None: reward {reward.name!r} has no finite range; pass it in the rater's units")
    value = (high - low) * SOFTNESS_FRAC if softness is None else softness
    if top < 1 or not 0 < value < math.inf:
        raise ValueError(f"top={top}, softness={value}: at least 1, and above 0")
    if min(image.shape[1:]) <= 2 * LR_BORDER_PX:
        raise ValueError(
            f"image_lq: {image.shape[2]} x {image.shape[1]} px, but LR-consistency needs {2 * LR_BORDER_PX + 1} px on "
            "each side"
        )
    return value


def _different(start: BestOfN, top: int) -> list[Candidate]:
    """Return the `top` best candidates that show different images. Raises ValueError where none could be measured."""
    different: dict[str | None, Candidate] = {start.best.pixels: start.best}
    for candidate in start.order:
        if candidate.valid:
            different.setdefault(candidate.pixels, candidate)
    return list(different.values())[:top]


def _maps(
    rater: "Rater", parts: list[Candidate], images: list[Tensor], rows: list[dict[str, Any]], view_px: int | None,
    folder: Path | None, *, progress: bool,
) -> list[tuple[tuple[PixelBox, ...], Tensor]]:  # fmt: skip
    """Return the views and their ratings for each candidate; those that are recorded are not rated again."""
    recorded = {row["pixels"]: row for row in rows}
    maps = []
    shown = progress_of(parts, len(parts), "rating views", streaming=False) if progress else parts
    for candidate, image in zip(shown, images, strict=True):
        row = recorded.get(candidate.pixels)
        if row is None:
            quality = quality_map(rater, image, view_px=view_px, strict=True)
            row = {"candidate": candidate.index, "pixels": candidate.pixels,
                   "boxes": [list(box) for box in quality.boxes], "ratings": quality.ratings.mean.tolist(),
                   "errors": list(quality.ratings.errors)}  # fmt: skip
            row = plain(row)
            if folder is not None:
                append_line(folder / LINES, row)
        boxes = tuple((left, above, right, below) for left, above, right, below in row["boxes"])
        maps.append((boxes, torch.tensor([as_float(value) for value in row["ratings"]])))
    return maps


def _fused(
    start: BestOfN, parts: list[Candidate], images: list[Tensor],
    maps: list[tuple[tuple[PixelBox, ...], Tensor]], given: dict[str, Tensor | None], reward: Reward, softness: float,
) -> Fused:  # fmt: skip
    best, lq = start.best, given["lq"]
    assert lq is not None
    ratings = torch.stack([values for _, values in maps])
    height, width = images[0].shape[1:]
    shares = view_weights(ratings, [item.score for item in parts], softness)
    weights = pixel_weights(shares, maps[0][0], height, width)
    floor_db = lr_consistency(images[0], lq)
    blend = blended(images, weights, lq, floor_db)
    scores = ask_restorations(
        reward, [blend.image], lq=[lq], hr=None if given["hr"] is None else [given["hr"]], prompts=[best.prompt or ""]
    )
    score = float(scores.value[0]) if bool(scores.valid[0]) else math.nan
    if len(parts) == 1:
        reason = "one different candidate: there is nothing to fuse"
    elif not blend.agrees:
        reason = f"not chosen: LR-consistency {blend.lr_consistency:.2f} dB, the best candidate's is {floor_db:.2f} dB"
    elif math.isnan(score):
        reason = f"not chosen: {scores.reason(0, reward.name)}"
    elif score > best.score:
        reason = f"chosen: score {best.score:.3f} to {score:.3f}, LR-consistency {floor_db:.2f} to " + (
            f"{blend.lr_consistency:.2f} dB after {blend.back_projections} back-projections"
        )
    else:
        reason = f"not chosen: score {score:.3f}, the best candidate has {best.score:.3f}"
    return Fused(
        start=start, fused=to_pil(blend.image), score=score, lr_consistency=blend.lr_consistency, agrees=blend.agrees,
        sources=tuple(item.index for item in parts), ratings=ratings, weights=weights,
        is_chosen=reason.startswith("chosen"), reason=reason, report={},
    )  # fmt: skip


def report_of_fusion(
    result: Fused, settings: dict[str, Any], arguments: dict[str, Any], seconds: float
) -> dict[str, Any]:  # fmt: skip
    """Return the content of run.json: JSON values only, NaN as null. `seconds` counts this session."""
    cost = cost_of(result.start.candidates)
    return plain({
        "settings": settings, "arguments": arguments, "reason": result.reason, "is_chosen": result.is_chosen,
        "score": result.score, "best_candidate_score": result.start.best.score,
        "lr_consistency": result.lr_consistency, "agrees": result.agrees, "sources": list(result.sources),
        "shares": [round(float(weight.mean()), 4) for weight in result.weights], "notes": list(result.start.notes),
        "cost": cost | {"scores": cost["scores"] + 1, "view_ratings": result.ratings.numel()},
        "seconds": round(seconds, 3),
    }) | provenance("diffusers")  # fmt: skip
