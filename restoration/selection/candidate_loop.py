"""Drawing candidates one by one: make, score, record, and hold no more images than asked for."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from restoration.restorer.image_io import RestorationError, prompt_text
from restoration.restorer.restorer import Restored
from restoration.restorer.rng import candidate_seed
from restoration.selection.candidates import Candidate, Explanation, pixels_digest, ranked
from restoration.selection.early_stop import EarlyStop
from restoration.selection.result import PENDING, DrawFolder
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.rewards.base import Reward, fingerprint_of, is_groupwise, require_reward
from zoomiqa_reward.rewards.restorations import ask_restorations
from zoomiqa_reward.runs.json_lines import as_float, plain
from zoomiqa_reward.runs.progress import progress as progress_of


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """One restorer with one prompt: what a candidate is drawn from."""

    restorer: Any
    prompt: str | None
    """None: the restorer's own."""

    @property
    def has_text(self) -> bool:
        """Whether the caller has given a prompt, here or to the restorer, even if the restorer takes none."""
        return self.prompt is not None or getattr(self.restorer, "prompt", "") != ""

    def reward_text(self, used: str | None, image_lq: Tensor) -> str:
        """Return the text for a reward: what the restorer used, else the prompt that it dropped; may be empty.

        used: `Restored.prompt`, None for a restorer that takes no text. image_lq: CHW.
        """
        if used is None:
            used = self.prompt
        return prompt_text(getattr(self.restorer, "prompt", ""), image_lq) if used is None else used


def require_texts(rewards: Sequence[Reward], sources: Sequence[CandidateSource], argument: str = "prompts") -> None:
    """Raise ValueError for a reward that needs a text where a source has none, NoReward for what is no reward.

    argument: the caller's, for the text.
    """
    for reward in rewards:
        require_reward(reward)
    has_texts = all(source.has_text for source in sources)
    if needing := [reward for reward in rewards if "prompts" in reward.needs and not has_texts]:
        raise ValueError(
            f"reward {needing[0].name!r} needs prompts: pass {argument}='what the image shows', or --prompt"
        )


def require_draws(
    rewards: Sequence[Reward], *, n: int, seed: int, keep: int = 1, batch_size: int = 1, has_hr: bool = False
) -> None:
    """Raise ValueError for numbers out of range, for what is no reward, and for one without the ground truth it needs.

    Ask before a folder is bound: a corrected call would be another run there.
    """
    if n < 1 or keep < 1 or seed < 0 or batch_size < 1:
        raise ValueError(
            f"n={n}, keep={keep}, batch_size={batch_size}, seed={seed}: seed must be at least 0, the others at least 1"
        )
    for reward in rewards:
        require_reward(reward)
        if "hr" in reward.needs and not has_hr:
            raise ValueError(
                f"reward {reward.name!r} needs hr=, the ground truth; zoomiqa evaluate takes one per image"
            )


class RewardAnswer(NamedTuple):
    """What a reward said of one image."""

    score: float
    std: float
    error: str | None
    """Why there is no score; score and std are NaN then."""
    explanation: Explanation | None


class CandidateLoop:
    """The candidates so far, and the best images of them."""

    def __init__(
        self, sources: list[CandidateSource], given: dict[str, Tensor | None], reward: Reward, seed: int,
        folder: DrawFolder | None, keep: int, batch_size: int | None, reward_prompt: str | None = None,
    ) -> None:  # fmt: skip
        """given: lq, and hr or None. keep: most images held. batch_size: None in strict mode.

        reward_prompt: text for the reward; None: that of each candidate (`CandidateSource.reward_text`).
        """
        self.reward_prompt = reward_prompt
        self.sources, self.given, self.reward, self.seed = sources, given, reward, seed
        self.folder, self.keep, self.batch_size = folder, keep, batch_size
        self.candidates: list[Candidate] = []
        self.pools = is_groupwise(reward)
        """The reward compares images within a group: all candidates are scored together, so all are held until then."""

    def draw(self, n: int, early_stop: EarlyStop | None, *, progress: bool) -> bool:
        """Draw until there are n, or the rule says stop; return whether it did."""
        for _ in self.draw_each(n, progress=progress):
            if early_stop is not None and len(self.candidates) < n and self._stops(early_stop):
                return True
        return False

    def draw_each(self, n: int, *, progress: bool = False) -> Iterator[None]:
        """Draw until there are n, and yield after each one (or each batch): `candidates` then holds it with its score.

        A reward that compares images scores the whole pool before the last yield, and nothing before.
        """
        size = 1 if self.batch_size is None else self.batch_size * len(self.sources)
        begins = range(0, n, size)
        for begin in progress_of(begins, len(begins), "restoring", streaming=False) if progress else begins:
            chunk = range(begin, min(begin + size, n))
            candidates = self._chunk(chunk)
            for k in chunk:
                self.candidates.append(candidates[k])
                if not self.pools:
                    self.forget()
            if self.pools and len(self.candidates) == n:
                self._score_pool()
            yield

    def _stops(self, early_stop: EarlyStop) -> bool:
        if self.pools and len(self.candidates) >= early_stop.min_draws * len(self.sources):
            self._score_pool()
        return early_stop.says_stop(self._scores())

    def _score_pool(self) -> None:
        """Score all different images so far as one group; candidates that show the same image share its score."""
        first: dict[str, Candidate] = {}
        for candidate in self.candidates:
            if candidate.pixels is not None:
                first.setdefault(candidate.pixels, candidate)
        answers = dict(zip(first, self._ask_together(self.reward, list(first.values())), strict=True))
        self.candidates = [
            candidate if candidate.pixels is None else replace(candidate, **_scored(answers[candidate.pixels]))
            for candidate in self.candidates
        ]
        if self.folder is not None:
            self.folder.score_together(self.candidates)

    def ask_again(self, reward: Reward, top: int) -> None:
        """Ask another reward about the `top` best different images; all candidates that show one get its score."""
        order = sorted(
            (entry for entry in ranked(self.candidates) if entry.valid), key=lambda entry: (entry.rank, entry.index)
        )
        chosen: dict[str | None, Candidate] = {}
        for candidate in order:
            chosen.setdefault(candidate.pixels, candidate)
        finalists = list(chosen.values())[:top]
        together = self._ask_together(reward, finalists) if is_groupwise(reward) else [None] * len(finalists)
        for candidate, answer in zip(finalists, together, strict=True):
            row = None
            if self.folder is not None and answer is None:
                row = self.folder.cascaded.get((candidate.index, fingerprint_of(reward)))
            if row is None:
                answer = answer or self._ask(reward, candidate.image, candidate.prompt, candidate.source)
                why = None if answer.explanation is None else asdict(answer.explanation)
                score = None if answer.error else plain(answer.score)
                key = None if self.folder is None else fingerprint_of(reward)
                row = {"index": candidate.index, "reward": key, "score": score, "error": answer.error,
                       "explanation": why}  # fmt: skip
                if self.folder is not None:
                    self.folder.add_cascade(row)
            fields = {
                "cascade_score": as_float(row["score"]),
                "cascade_error": row["error"],
            }
            if row.get("explanation") is not None:
                fields["explanation"] = Explanation.from_json(row["explanation"])
            self.candidates = [
                replace(entry, **fields) if entry.pixels == candidate.pixels else entry for entry in self.candidates
            ]

    def _chunk(self, chunk: range) -> dict[int, Candidate]:
        """Return the chunk's candidates by number: those in the folder, and the others drawn now."""
        done = {} if self.folder is None else self.folder.done
        candidates = {k: done[k] for k in chunk if k in done}
        for index, source in enumerate(self.sources):
            mine = [k for k in chunk if k % len(self.sources) == index]
            missing = [k for k in mine if k not in candidates]
            if not missing:
                continue
            if source.restorer.deterministic:
                first = self._first(index, candidates)
                if first is None:
                    first = candidates[missing[0]] = next(self._restore_candidates(index, missing[:1]))
                candidates |= {k: self._copy(first, k) for k in missing if k not in candidates}
            else:
                # The whole batch again where part of it was recorded: neighbours may change the last bits.
                drawn = missing if self.batch_size is None else mine
                candidates |= {
                    candidate.index: candidate for candidate in self._restore_candidates(index, drawn, set(missing))
                }
        return candidates

    def _first(self, index: int, candidates: dict[int, Candidate]) -> Candidate | None:
        earlier = [*self.candidates, *candidates.values()]
        return next(
            (candidate for candidate in earlier if candidate.source == index and candidate.same_as is None), None
        )

    def _restore_candidates(
        self, index: int, numbers: list[int], wanted: set[int] | None = None
    ) -> Iterator[Candidate]:
        """Restore candidates of one source and yield those wanted, each scored and recorded."""
        source = self.sources[index]
        seeds = [candidate_seed(self.seed, k) for k in numbers]
        began = time.monotonic()
        made = self._restore(source, seeds)
        share = (time.monotonic() - began) / len(numbers)
        for k, seed, restored in zip(numbers, seeds, made, strict=True):
            if wanted is not None and k not in wanted:
                continue
            yield self._measured(index, restored, {"index": k, "seed": seed, "seconds": round(share, 4)})

    def _measured(self, index: int, restored: Restored | RestorationError, fields: dict[str, Any]) -> Candidate:
        """Score and record one candidate of source `index`. fields: values that the caller has."""
        source = self.sources[index]
        common = fields | {"restorer": source.restorer.name, "source": index}
        if isinstance(restored, RestorationError):
            failed = Candidate(prompt=source.prompt, batch_position=0, batch_size=1, error=str(restored), **common)
            return self._recorded(failed, None)
        image = to_pil(restored.image)
        answer = _PENDING if self.pools else self._ask(self.reward, image, restored.prompt, index)
        scored = Candidate(
            prompt=restored.prompt, batch_position=restored.batch_position, batch_size=restored.batch_size,
            sharpness=restored.sharpness,
            pixels=pixels_digest(image), **_scored(answer), **common,
        )  # fmt: skip
        return self._recorded(scored, image)

    def _copy(self, first: Candidate, k: int) -> Candidate:
        copy = replace(first, index=k, seed=candidate_seed(self.seed, k), same_as=first.index, seconds=0.0)
        return self._recorded(copy, None)

    def _recorded(self, candidate: Candidate, image: Image.Image | None) -> Candidate:
        if self.folder is not None:
            candidate = self.folder.add(candidate, image)
        return candidate if image is None else replace(candidate, held=image)

    def _restore(self, source: CandidateSource, seeds: list[int]) -> list[Restored | RestorationError]:
        options: dict[str, Any] = {} if source.prompt is None else {"prompt": source.prompt}
        if self.batch_size is not None:
            options |= {"strict": False, "batch_size": len(seeds)}
        try:
            return list(source.restorer.restore(self.given["lq"], seeds, **options))
        except RestorationError as error:
            if len(seeds) == 1:
                return [error]
        return [self._restore(source, [seed])[0] for seed in seeds]  # so that one does not fail the others

    def _ask(self, reward: Reward, image: Image.Image, prompt: str | None, source: int) -> RewardAnswer:
        """Ask a reward about one image. prompt: what the restorer used. source: its index."""
        return self._score_restorations(reward, [image], [self._text(prompt, source)])[0]

    def _ask_together(self, reward: Reward, candidates: list[Candidate]) -> list[RewardAnswer]:
        """Ask a reward about candidates as one group."""
        texts = [self._text(candidate.prompt, candidate.source) for candidate in candidates]
        return self._score_restorations(reward, [candidate.image for candidate in candidates], texts)

    def _text(self, prompt: str | None, source: int) -> str:
        """Return the text for the reward. prompt: what the restorer used. source: its index."""
        if self.reward_prompt is not None:
            return self.reward_prompt
        image_lq = self.given["lq"]
        assert image_lq is not None
        return self.sources[source].reward_text(prompt, image_lq)

    def _score_restorations(self, reward: Reward, images: list[Image.Image], texts: list[str]) -> list[RewardAnswer]:
        count, lq, hr = len(images), self.given["lq"], self.given["hr"]
        if not count:
            return []
        assert lq is not None
        scores = ask_restorations(
            reward, [load_image(image) for image in images], lq=[lq] * count,
            hr=None if hr is None else [hr] * count, prompts=texts, groups=[0] * count,
        )  # fmt: skip
        answers = []
        for k in range(count):
            explanation = None if scores.answers is None else Explanation.of(next(iter(scores.answers[k]), None))
            if bool(scores.valid[k]):
                answers.append(RewardAnswer(float(scores.value[k]), float(scores.std[k]), None, explanation))
            else:
                answers.append(RewardAnswer(math.nan, math.nan, scores.reason(k, reward.name), explanation))
        return answers

    def _scores(self) -> list[list[float]]:
        return [
            [candidate.score for candidate in self.candidates if candidate.source == index and candidate.valid]
            for index in range(len(self.sources))
        ]

    def forget(self) -> None:
        """Let go of all images but the best `keep` different ones; copies of a deterministic restorer count once."""
        holding = [candidate for candidate in ranked(self.candidates) if candidate.held is not None]
        holding.sort(key=lambda candidate: (candidate.rank is None, candidate.rank or 0, candidate.index))
        different = dict.fromkeys(candidate.pixels for candidate in holding)
        kept = set(list(different)[: self.keep])
        self.candidates = [
            candidate if candidate.pixels in kept else replace(candidate, held=None) for candidate in self.candidates
        ]


_PENDING = RewardAnswer(math.nan, math.nan, PENDING, None)
"""Stands in the folder for candidates whose score depends on the whole pool."""


def _scored(answer: RewardAnswer) -> dict[str, Any]:
    return {"score": answer.score, "std": answer.std, "valid": answer.error is None, "error": answer.error,
            "explanation": answer.explanation}  # fmt: skip
