"""Cache the values of a reward in one SQLite file of bounded size, which several processes may share.

The key is the sha256 of the image's float32 pixels and shape, of the same of lq and hr, of the prompt, and of the
reward's fingerprint, mode and strictness: a file that changes, another checkpoint, protocol, dtype or library version
is another key. Values come back bit for bit. A failed measurement is not stored, so it is tried again next time.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, require_pointwise, require_reward
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.rewards.normalise import hash_pixels
from zoomiqa_reward.rewards.score_store import CacheError, ScoreStore
from zoomiqa_reward.runs.settings import identity_of

__all__ = ["CacheError", "CacheStats", "CachedReward", "make_key"]

WINDOW = 64
"""Images that are looked up, measured and stored together: the most that a killed run loses."""


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counts of a cache since it was opened in this process, and the size of its file."""

    hits: int
    misses: int
    """Images measured and stored."""
    failures: int
    """Images that could not be measured; not stored."""
    bypassed: int
    """Images of calls with grad=True."""
    entries: int
    size_bytes: int
    """Size of the pages in use, without the write-ahead log."""

    @property
    def hit_rate(self) -> float:
        """Hits divided by look-ups; NaN before the first."""
        asked = self.hits + self.misses + self.failures
        return self.hits / asked if asked else math.nan


class CachedReward(Reward):
    """Cache for `reward`, with the same interface and values. Use it as a context manager or call `close()`.

    Calls with grad=True skip the cache, because a stored number has no graph.
    """

    def __init__(
        self,
        reward: Reward,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 256 << 20,
        busy_timeout_s: float = 30.0,
    ) -> None:
        """Cache `reward` in the file `path` on a local disk. Several processes and rewards may share it.

        max_bytes: size limit of the file; beyond it the least recently used tenth is deleted. busy_timeout_s: longest
        wait for another process that is writing.
        Raises ValueError for a reward that is random, GroupwiseError for one whose values are relative to a group, and
        UnknownState for one whose state cannot be read.
        """
        require_reward(reward)
        if not reward.deterministic:
            raise ValueError(f"reward {reward.name!r} is random: a cache would repeat one draw forever; give it a seed")
        require_pointwise(reward, "no key of a cache can hold a group: cache its terms instead")
        _ = fingerprint_of(reward)  # raises UnknownState here, not after the first measurement
        self.reward = reward
        self.name, self.score_range, self.needs = reward.name, reward.score_range, reward.needs
        self.differentiable, self.deterministic = reward.differentiable, True
        self.store = ScoreStore(path, max_bytes=max_bytes, busy_timeout_s=busy_timeout_s)
        self._counts = {"hits": 0, "misses": 0, "failures": 0, "bypassed": 0}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the reward: the cache changes no value, but a subclass may."""
        added = added_by_subclass(self, CachedReward)
        return state_digest(fingerprint_of(self.reward), *added) if added else fingerprint_of(self.reward)

    @property
    def identity(self) -> dict[str, object]:
        """The identity of the reward."""
        return identity_of(self.reward)

    @property
    def stats(self) -> CacheStats:
        """Counts since this object was created, and the size of the file."""
        entries, size_bytes = self.store.size()
        return CacheStats(**self._counts, entries=entries, size_bytes=size_bytes)

    def __enter__(self) -> "CachedReward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.store.close()

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return the reward's scores on the CPU. An image that occurs twice in a call is measured once.

        `info`: `errors`, and `cache` with this call's `hits`, `misses`, `failures` and `hit_rate` (hits over all);
        other entries of the reward's info are not kept. Raises the exceptions of the reward, and ValueError if the
        number of lq, hr or prompts differs from the number of images.
        """
        sources = split_images(images)
        if grad:
            scores = ask(self.reward, images, lq=lq, hr=hr, prompts=prompts, grad=True)
            self._counts["bypassed"] += len(sources)
            return scores
        given = {key: split_images(items) for key, items in (("lq", lq), ("hr", hr), ("prompts", prompts))
                 if items is not None}  # fmt: skip
        for key, items in given.items():
            if len(items) != len(sources):
                raise ValueError(
                    f"reward {self.name!r}: {key} holds {len(items)} for {len(sources)} images: pass one per image"
                )
        results: list[tuple[float, float, str | None]] = []
        before = dict(self._counts)
        for start in range(0, len(sources), WINDOW):
            window = {key: items[start : start + WINDOW] for key, items in given.items()}
            results += self._window(sources[start : start + WINDOW], window)
        counts = {key: count - before[key] for key, count in self._counts.items() if key != "bypassed"}
        rate = counts["hits"] / len(sources) if sources else math.nan
        value = torch.tensor([value for value, _, _ in results], dtype=torch.float32)
        std = torch.tensor([std for _, std, _ in results], dtype=torch.float32)
        errors = tuple(error for _, _, error in results)
        info = {"cache": counts | {"hit_rate": rate}}
        return Scores(value=value, valid=~value.isnan(), std=std, errors=errors, info=info)

    def _window(self, sources: list[ImageSource], given: dict[str, list[Any]]) -> list[tuple[float, float, str | None]]:
        asked = (fingerprint_of(self.reward),)
        keys: list[bytes | str] = []
        """A key, or why there is none."""
        loaded: dict[bytes, tuple[Tensor, dict[str, Any]]] = {}
        for index, source in enumerate(sources):
            try:
                image = load_image(source)
                others = {name: items[index] if name == "prompts" else load_image(items[index])
                          for name, items in given.items()}  # fmt: skip
            except ImageError as error:
                keys.append(str(error))
                continue
            pixels_key = make_key(asked, image, others)
            keys.append(pixels_key)
            loaded.setdefault(pixels_key, (image, others))
        stored = self.store.read(loaded)
        new, errors = self._measure({key: pair for key, pair in loaded.items() if key not in stored})
        if new or stored:
            self.store.write(new, used=stored)
        values = stored | new
        results: list[tuple[float, float, str | None]] = []
        fresh = set(new)
        for key in keys:
            if isinstance(key, str) or key not in values:
                results.append((math.nan, math.nan, key if isinstance(key, str) else errors[key]))
                self._counts["failures"] += 1
                continue
            results.append((*values[key], None))
            self._counts["misses" if key in fresh else "hits"] += 1
            fresh.discard(key)  # the second of two equal images is a hit
        return results

    def _measure(
        self, missing: dict[bytes, tuple[Tensor, dict[str, Any]]]
    ) -> tuple[dict[bytes, tuple[float, float]], dict[bytes, str]]:
        """Return (value, std) of what could be measured, and the reasons for the others."""
        if not missing:
            return {}, {}
        names = next(iter(missing.values()))[1]
        others: dict[str, Any] = {name: [pair[1][name] for pair in missing.values()] for name in names}
        scores = ask(self.reward, [image for image, _ in missing.values()], **others)
        new, errors = {}, {}
        values, stds = scores.value.detach().cpu().tolist(), scores.std.detach().cpu().tolist()
        for index, key in enumerate(missing):
            if bool(scores.valid[index]):
                new[key] = (values[index], stds[index])
            else:
                errors[key] = scores.errors[index] or "not measured"
        return new, errors


def make_key(asked: tuple[object, ...], image: Tensor, others: Mapping[str, object]) -> bytes:
    """Return the 32-byte key of one measurement: of which reward, of which image, with which inputs."""
    parts = [repr(asked), hash_pixels(image)]
    parts += [
        f"{name}={hash_pixels(item) if isinstance(item, Tensor) else item!r}" for name, item in sorted(others.items())
    ]
    return hashlib.sha256("\n".join(parts).encode()).digest()
