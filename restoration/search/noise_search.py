"""Search over noise: draw a few candidates, keep the best one's noise, move it a little, and repeat.

The first round is that of best-of-N, bit for bit. Each later candidate has the noise sqrt(1 - a^2) n + a e: n is that
of the best candidate before its round, and e comes from its own seed (`restorer/noise.py`). N candidates are N
restorations and N scores, as in best-of-N. The best is that of all rounds, so it is never worse than the start.
Source: zero-order search over noise (Ma et al., "Inference-time scaling for diffusion models beyond scaling denoising
steps", 2025); here with steps that keep the noise standard normal.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.restorer.image_io import RestorationError
from restoration.restorer.loading import RestorerSource
from restoration.restorer.noise import NoiseStep
from restoration.restorer.restorer import Restored, Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import measure_of, pool, report_of, result_notes, settings_of
from restoration.selection.candidate_loop import CandidateLoop, CandidateSource, require_texts
from restoration.selection.candidates import Candidate, are_identical, ranked
from restoration.selection.result import BestOfN, DrawFolder, open_run, write_artefacts
from zoomiqa_reward.images.loading import ImageSource, conversions, load_image, to_pil
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.whole_numbers import whole_numbers

PER_ROUND = 4
AMOUNT = 0.5
"""Correlation 0.87 with the noise before."""


def search_noise(
    restorer: RestorerSource | Restorer | Sequence[RestorerSource | Restorer], image_lq: ImageSource, reward: Reward,
    n: int = 8, seed: int = 0, *, per_round: int = PER_ROUND, amount: float = AMOUNT,
    out: str | os.PathLike[str] | None = None, keep: int = 4, prompts: str | Sequence[str] | None = None,
    hr: ImageSource | None = None, progress: bool = True,
) -> BestOfN:  # fmt: skip
    """Return N candidates of `image_lq` in the order of a reward, drawn near the best one after the first round.

    restorer, reward, seed, keep, prompts, hr: as in `best_of_n`. Every candidate has a call of its own (strict).
    n: candidates of all rounds together; per_round: candidates of one round, all near the same noise. amount: share a
    of the new noise, above 0 up to 1; 1 keeps nothing of the noise before, but its restorer, prompt and first seed.
    out: folder, created if missing. If it holds this run, the run continues, also with a larger `n`; no candidate is
    made or scored twice. A candidate's `parent` names the one whose noise was moved.

    What moves is all Gaussian noise that the restorer draws through torch, and the sharpness of `vary_sharpness`. A
    restorer without noise takes part in the first round alone: the best of the others is then moved. If none of them
    could be measured, the next round draws new noise.

    Raises ValueError for numbers out of range, a missing hr or prompt, a pool without noise, a folder of another run;
    GroupwiseError for a reward that compares images; ImageError; what a reward raises.
    """
    n, keep, seed, per_round = whole_numbers(n=n, keep=keep, seed=seed, per_round=per_round)  # as run.json has them
    amount = float(amount)
    if n < 1 or keep < 1 or seed < 0 or per_round < 1 or not 0 < amount <= 1:
        raise ValueError(
            f"n={n}, keep={keep}, per_round={per_round}, seed={seed}, amount={amount}: n, keep and per_round must be "
            "at least 1, seed at least 0, amount above 0 and at most 1"
        )
    require_order("search_noise(restorer, image_lq, reward)", judges={"reward": reward}, images={"image_lq": image_lq})
    require_pointwise(reward, "each round starts from the best score so far")
    if "hr" in reward.needs and hr is None:
        raise ValueError(f"reward {reward.name!r} needs hr=, the ground truth; zoomiqa evaluate takes one per image")
    image = load_image(image_lq).detach().cpu()
    given = {"lq": image, "hr": None if hr is None else load_image(hr).detach().cpu()}
    sources = pool(restorer, prompts)
    require_texts([reward], sources)
    if all(source.restorer.deterministic for source in sources):
        names = ", ".join(sorted({source.restorer.name for source in sources}))
        raise ValueError(f"{names}: takes no seed, so there is no noise to search; vary_sharpness=0.5 gives it some")
    settings = settings_of(sources, given, reward, seed, None, is_kept=out is not None)
    settings |= {"search": "noise", "per_round": per_round, "amount": amount}
    began = time.monotonic()
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(open_run(Path(out), settings))
        drawing = NoiseLoop(sources, given, reward, seed, folder, keep, per_round, amount)
        drawing.draw(n, None, progress=progress)
        drawing.forget()
        candidates = tuple(ranked(drawing.candidates))
        notes = (*result_notes(candidates, sources, n, None), _rounds_note(candidates, per_round))
        notes += tuple(f"the input: {note}" for note in conversions(image_lq))
        arguments = {
            "n": n, "keep": keep, **measure_of(reward),
            "early_stop": None, "cascade": None,
        }  # fmt: skip
        report = report_of(candidates, settings, arguments, notes, time.monotonic() - began)
        report["cost"] = cost_of(candidates)
        result = BestOfN(candidates=candidates, identical=are_identical(candidates), stopped_early=False, notes=notes,
                         report=report, image_lq=to_pil(image))  # fmt: skip
        if folder is not None:
            write_artefacts(result, folder.folder)
    return result


class NoiseLoop(CandidateLoop):
    """The candidates so far; each one after the first round is near the best before its round."""

    def __init__(
        self, sources: list[CandidateSource], given: dict[str, Tensor | None], reward: Reward, seed: int,
        folder: DrawFolder | None, keep: int, per_round: int, amount: float,
    ) -> None:  # fmt: skip
        super().__init__(sources, given, reward, seed, folder, keep, None)
        self.per_round, self.amount = per_round, amount

    def _chunk(self, chunk: range) -> dict[int, Candidate]:
        (k,) = chunk  # strict: one candidate per call
        is_done = self.folder is not None and k in self.folder.done
        parent = None if is_done else self._parent(k)
        return super()._chunk(chunk) if parent is None else {k: self._near(parent, k)}

    def _parent(self, k: int) -> Candidate | None:
        """Return the best candidate with noise before the round of candidate k; the earlier one of equals."""
        before = self.candidates[: k // self.per_round * self.per_round]
        with_noise = [item for item in before if item.valid and not self.sources[item.source].restorer.deterministic]
        return max(with_noise, key=lambda item: item.score, default=None)

    def _near(self, parent: Candidate, k: int) -> Candidate:
        seed = candidate_seed(self.seed, k)
        first, steps = self._lineage(parent)
        steps.append(NoiseStep(seed=seed, amount=self.amount))
        source = self.sources[parent.source]
        options: dict[str, Any] = {} if source.prompt is None else {"prompt": source.prompt}
        began = time.monotonic()
        restored: Restored | RestorationError
        try:
            restored = next(iter(source.restorer.restore(self.given["lq"], [first], noise=steps, **options)))
        except RestorationError as error:
            restored = error
        fields = {"index": k, "seed": seed, "parent": parent.index, "seconds": round(time.monotonic() - began, 4)}
        return self._measured(parent.source, restored, fields)

    def _lineage(self, candidate: Candidate) -> tuple[int, list[NoiseStep]]:
        """Return the seed of the first noise, and the steps from there to the candidate's."""
        steps: list[NoiseStep] = []
        while candidate.parent is not None:
            steps.insert(0, NoiseStep(seed=candidate.seed, amount=self.amount))
            candidate = self.candidates[candidate.parent]
        return candidate.seed, steps


def cost_of(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Return how many restorations and scores the candidates took; copies of a deterministic restorer took none."""
    made = [item for item in candidates if item.same_as is None]
    return {"restorations": len(made), "scores": sum(item.pixels is not None for item in made)}


def _rounds_note(candidates: Sequence[Candidate], per_round: int) -> str:
    """Return the best score after each round, in words."""
    best: list[str] = []
    for end in range(per_round, len(candidates) + per_round, per_round):
        scores = [item.score for item in candidates[:end] if item.valid]
        best.append(f"{max(scores):.3f}" if scores else "none")
    return f"best score after each round of {per_round}: {', '.join(best)}"
