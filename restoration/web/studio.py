"""What the page does, without the page: rate, compare and restore images, one step at a time."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from restoration.web.uploads import StudioLimits, fit_input, open_upload
from zoomiqa_reward.images.loading import ImageError, to_pil
from zoomiqa_reward.model.direct import rate_direct
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.quality_map import QualityMap, quality_map
from zoomiqa_reward.model.ranking import Ranking, ranking_of
from zoomiqa_reward.model.ratings import Assessment, Ratings
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.digest import file_digest

if TYPE_CHECKING:
    from restoration.restorer.restorer import Restorer
    from restoration.selection.candidates import Candidate


@dataclass(frozen=True, kw_only=True)
class RatedUpload:
    """An uploaded image with its rating, and its words once they are there."""

    image: Image.Image
    mean: float
    """1..5; NaN if not measured."""
    std: float
    ratings: tuple[float, ...]
    """Every rating that the model may give, ascending."""
    shares: tuple[float, ...]
    """Probability of each rating; they sum to 1. Empty if not measured."""
    error: str | None
    seconds: float
    will_explain: bool
    """Whether words follow: the image was rated, and the model answers in more than a level word."""
    words: Assessment | None = None


@dataclass(frozen=True, kw_only=True)
class DrawnSoFar:
    """Best-of-N after one more candidate."""

    order: tuple["Candidate", ...]
    """Best first; those that are not valid come last."""
    n: int
    image_lq: Tensor
    doing_nothing: Image.Image
    """The input, enlarged by bicubic."""
    notes: tuple[str, ...]
    seconds: float


class Studio:
    """The models behind the page, loaded in the background: the judge first, then the restorers."""

    def __init__(
        self,
        load_judge: Callable[[], ZoomIQA],
        load_restorers: Callable[[], "Sequence[Restorer]"],
        limits: StudioLimits | None = None,
    ) -> None:
        """load_restorers: returns what `best_of_n` takes as `restorer`."""
        self.limits = limits or StudioLimits()
        loader = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self.judge: Future[ZoomIQA] = loader.submit(load_judge)
        self.restorers: Future[Sequence[Restorer]] = loader.submit(lambda: (self.judge.result(), load_restorers())[1])
        loader.shutdown(wait=False)

    def open(self, file: str | Path | None) -> Tensor:
        """Return an uploaded image. Raises ImageError."""
        return open_upload(file, max_pixels=self.limits.max_pixels)

    def rate(self, file: str | None) -> Iterator[RatedUpload]:
        """Yield the rating of an image with its distribution, then once more with the words of both rounds.

        Yielded once: an image without content, with the reason in `error`, and the rating of a model that only names a
        level. Raises ImageError.
        """
        image, iqa, began = self.open(file), self.judge.result(), time.monotonic()
        logprobs, mean, std, error = distribution(iqa, image)
        shares = () if math.isnan(mean) else tuple(torch.softmax(logprobs, dim=0).tolist())
        rated = RatedUpload(
            image=to_pil(image), mean=mean, std=std, ratings=tuple(iqa.trie.ratings), shares=shares, error=error,
            will_explain=error is None and not iqa.protocol.levels, seconds=time.monotonic() - began,
        )  # fmt: skip
        yield rated
        if rated.will_explain:
            words = iqa.assess([image], strict=True)[0]
            yield replace(rated, words=words, seconds=time.monotonic() - began)

    def compare(self, files: Sequence[str] | None) -> Iterator[tuple[int, Ranking | None]]:
        """Yield how many images are rated, with None, and at the end their ranking; indices are those of `files`.

        Raises ImageError for an image that cannot be used, ValueError for fewer than two or too many.
        """
        files = files or []
        if not 2 <= len(files) <= self.limits.max_files:
            raise ValueError(f"{len(files)} images: upload 2 to {self.limits.max_files} versions of one image")
        for file in files:
            self.open(file)  # all are checked before any is rated
        iqa, rated = self.judge.result(), []
        for count, file in enumerate(files):
            yield count, None
            rated.append(iqa.rate([self.open(file)], strict=True))
        means, stds, valid = (
            torch.cat([getattr(rating, key) for rating in rated]) for key in ("value", "std", "valid")
        )
        errors = tuple(rating.errors[0] for rating in rated)
        yield len(files), ranking_of(Ratings(value=means, std=stds, valid=valid, errors=errors, std_kind="token"))

    def names(self, files: Sequence[str] | None) -> list[str]:
        """Return what to call each of the files: its name, with its place where others have the same."""
        names = [Path(file).name for file in files or []]
        return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]

    def keys(self, files: Sequence[str] | None) -> list[str]:
        """Return what names each of the files for `side_by_side`: its place and its bytes. Raises ImageError."""
        try:
            return [f"{index}-{file_digest(file, size=16)}" for index, file in enumerate(files or [])]
        except OSError as error:
            raise ImageError("the images are gone: upload them again") from error

    def side_by_side(
        self, files: Sequence[str] | None, first: str | None, second: str | None
    ) -> tuple[Image.Image, Image.Image, str]:
        """Return two of the files at the size of the larger, and a sentence if one was enlarged for it.

        first, second: keys of the files, never paths, because the caller may be a stranger. A key of other files, as a
        list keeps it after a new upload, is none of these. Raises ImageError.
        """
        by_key = dict(zip(self.keys(files), zip(self.names(files), files or [], strict=True), strict=True))
        chosen = [by_key[key] for key in (first, second) if key in by_key]
        if len(chosen) < 2:
            raise ImageError("the images have changed: rate and rank them again")
        images = [to_pil(self.open(file)) for _, file in chosen]
        size = max((image.size for image in images), key=lambda size: size[0] * size[1])
        notes = [
            f"{name} is shown enlarged from {image.width} x {image.height} px (nearest pixel)."
            for (name, _), image in zip(chosen, images, strict=True) if image.size != size
        ]  # fmt: skip
        left, right = (image.resize(size, Image.Resampling.NEAREST) for image in images)
        return left, right, " ".join(notes)

    def map(self, file: str | None) -> tuple[Image.Image, QualityMap]:
        """Return an image and its quality map. Raises ImageError."""
        image = self.open(file)
        return to_pil(image), quality_map(self.judge.result(), image)

    def best_of_n(self, file: str | None, n: int, seed: int, *, shrink: bool) -> Iterator[DrawnSoFar]:
        """Yield the candidates so far, ranked, after each one that is drawn and rated.

        shrink: how an image above `max_input_px` is made smaller, see `fit_input`. Raises ImageError, ValueError.
        """
        # Imported when needed: the first rating does not wait for them.
        from restoration.selection.best_of_n import pool, result_notes
        from restoration.selection.candidate_loop import CandidateLoop
        from restoration.selection.candidates import ranked
        from restoration.selection.pool import doing_nothing

        if not 1 <= n <= self.limits.max_candidates or seed < 0:
            raise ValueError(f"n={n}, seed={seed}: 1 to {self.limits.max_candidates} candidates, a seed of at least 0")
        image, done = fit_input(self.open(file), self.limits.max_input_px, shrink=shrink)
        reward = ZoomIQAReward(self.judge.result())
        sources = pool(self.restorers.result(), None)
        began = time.monotonic()
        loop = CandidateLoop(sources, {"lq": image, "hr": None}, reward, seed, None, n, None)
        enlarged = to_pil(next(iter(doing_nothing(sources[0].restorer.scale).restore(image, [0]))).image)
        for _ in loop.draw_each(n):
            candidates = ranked(loop.candidates)
            order = sorted(candidates, key=lambda entry: (entry.rank is None, entry.rank or 0, entry.index))
            finished = len(order) == n
            notes = [done] if done else []
            notes += result_notes(candidates, sources, n, None) if finished else []
            yield DrawnSoFar(
                order=tuple(order), n=n, image_lq=image, doing_nothing=enlarged, notes=tuple(notes),
                seconds=time.monotonic() - began,
            )  # fmt: skip


@canonical
@torch.no_grad()
def distribution(iqa: ZoomIQA, image: Tensor) -> tuple[Tensor, float, float, str | None]:
    """Return the log-probability of each rating [ratings], mean, standard deviation, and why there is no rating.

    Mean and deviation are those of `iqa.rate([image], strict=True)`.
    """
    read = rate_direct(iqa.checkpoint, iqa.trie, [image], strict=True)
    error = read.errors[0]
    if error is None and not bool(read.valid[0]):
        error = "the model puts less than half of its probability on ratings"
    return read.logprobs[0].cpu(), float(read.mean[0]), float(read.std[0]), error
