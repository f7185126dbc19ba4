"""What one replica does: build the reward once, then answer image by image or batch by batch.

It knows nothing of Ray. All computing happens in one thread of its own, with a fixed number of torch threads: two
calls at once would share cores, and another number of threads may change the last bits of a value.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, optimised_names, require_pointwise
from zoomiqa_reward.serving.spec import RewardSpec
from zoomiqa_reward.serving.wire import ScoreItem, ScoreRow


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A row, and whose it is: a replica that came back with other weights must not pass unnoticed."""

    row: ScoreRow
    fingerprint: str


class Scorer:
    """A reward that answers `ScoreItem`s with `Answer`s, in order."""

    def __init__(self, spec: RewardSpec, threads: int) -> None:
        """Build the reward; `threads` is torch's number of threads. Raises what `RewardSpec.build` raises."""
        self._spec = spec
        self._threads = threads
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._strict, self._batched = self._worker.submit(self._build).result()

    def _build(self) -> tuple[Reward, Reward]:
        torch.set_num_threads(self._threads)  # counts for the thread that it is called in, too
        strict, batched = self._spec.build()
        require_pointwise(strict, "a server answers each image alone")
        return strict, batched

    def describe(self) -> dict[str, Any]:
        """Return what `/info` shows of the reward; an unbounded end of the score range is None."""
        reward = self._strict
        return {
            "name": reward.name,
            "higher_is_better": True,
            "score_range": [end if math.isfinite(end) else None for end in reward.score_range],
            "deterministic": reward.deterministic,
            "needs": sorted(reward.needs),
            "labels": sorted(optimised_names(reward)),
            "fingerprint": fingerprint_of(reward),
            "fingerprint_batched": fingerprint_of(self._batched),
            "threads": self._threads,
            "reward": self._spec.as_json(),
            "versions": {name: version(name) for name in ("zoomiqa-reward", "torch", "transformers")},
        }

    async def score(self, items: Sequence[ScoreItem], *, batched: bool) -> list[Answer]:
        """Return one answer an item. Raises what the reward raises, which is its bug and fails these items."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._score, items, batched)

    def _score(self, items: Sequence[ScoreItem], batched: bool) -> list[Answer]:
        reward = self._batched if batched else self._strict
        fingerprint = fingerprint_of(reward)
        loaded: dict[int, dict[str, Tensor]] = {}
        rows: list[ScoreRow] = [ScoreRow()] * len(items)
        for index, item in enumerate(items):
            try:
                loaded[index] = {part: image.load() for part, image in item.images.items()}
            except ImageError as error:
                rows[index] = ScoreRow.failed("unreadable_image", str(error))
        if loaded:
            for index, row in zip(loaded, self._measure(reward, items, loaded), strict=True):
                notes = (f"{role}: {note}" for role, image in items[index].images.items() for note in image.notes())
                rows[index] = replace(row, notes=tuple(notes))
        return [Answer(row=row, fingerprint=fingerprint) for row in rows]

    def _measure(
        self, reward: Reward, items: Sequence[ScoreItem], loaded: dict[int, dict[str, Tensor]]
    ) -> list[ScoreRow]:
        """Return a row per item; of a batch that fails each is asked alone, so that one client's image fails alone."""
        try:
            return self._ask(reward, items, loaded)
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(loaded) == 1:
                if len(items) == 1:
                    raise
                return [ScoreRow.failed("internal", f"{type(error).__name__}: {error}")]
        return [row for index, parts in loaded.items() for row in self._measure(reward, items, {index: parts})]

    def _ask(self, reward: Reward, items: Sequence[ScoreItem], loaded: dict[int, dict[str, Tensor]]) -> list[ScoreRow]:
        given: dict[str, Any] = {
            name: [parts[name] for parts in loaded.values()] for name in ("lq", "hr") if name in reward.needs
        }
        if "prompts" in reward.needs:
            given["prompts"] = [items[index].prompt for index in loaded]
        scores = ask(reward, [parts["image"] for parts in loaded.values()], **given)
        return [
            _row(*values)
            for values in zip(
                scores.value.tolist(), scores.std.tolist(), scores.valid.tolist(), scores.errors, strict=True
            )
        ]

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)


def _row(value: float, std: float, valid: bool, error: str | None) -> ScoreRow:
    if valid:
        return ScoreRow(value=value, std=std, valid=True)
    return ScoreRow.failed("not_measured", error or f"the reward returned {value}")
