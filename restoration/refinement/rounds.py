"""The loop of refine: assess the image, restore the named region again, and keep it only if it is better.

Round 0 is best-of-N over the whole image. Later, an attempt is kept if the reward of the whole 8-bit image rises by
`min_gain` and its LR-consistency is at most a slack below the highest one kept so far. It is compared with the highest
and not with the last, so that many small losses cannot add up.
"""

import copy
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from restoration.metrics.fidelity import LR_BORDER_PX, lr_consistency
from restoration.refinement.acceptance import acceptance_rule, find_reward_and_assessor, limits_of
from restoration.refinement.map_regions import NOTHING_WORSE, worst_view
from restoration.refinement.records import Attempt, Round, row_of
from restoration.refinement.regions import Region, ZoomRequest, read_zoom_request, texts_for
from restoration.refinement.result import Journal, Refined, write_artefacts
from restoration.restorer.image_io import RestorationError
from restoration.restorer.loading import RestorerSource
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import best_of_n, settings_of
from restoration.selection.candidate_loop import CandidateSource, require_texts
from restoration.selection.candidates import pixels_digest
from restoration.selection.result import BestOfN, open_run, settings_in
from zoomiqa_reward.images.loading import ImageSource, conversions, load_image, to_pil
from zoomiqa_reward.model.quality_map import QualityMap, quality_map
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, is_groupwise
from zoomiqa_reward.rewards.restorations import ask_restorations, lost_content
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.progress import progress as progress_of
from zoomiqa_reward.whole_numbers import whole_numbers

if TYPE_CHECKING:
    from restoration.refinement.acceptance import Assessor

REGION_SOURCES = ("words", "map")
LR_CONSISTENCY_SLACK_DB = 0.1
"""Loss of LR-consistency that a redrawn region of the same quality may have by chance."""
ROUND_SEEDS = 1 << 20
"""Seeds of rounds start here, above those of all candidates of the start."""


def refine(
    restorer: RestorerSource | Restorer, image_lq: ImageSource, iqa_or_reward: "Assessor | Reward", *,
    rounds: int = 3, seeds_per_round: int = 4, seed: int = 0,
    out: str | os.PathLike[str] | None = None, min_gain: float | None = None,
    lr_consistency_slack_db: float = LR_CONSISTENCY_SLACK_DB, assessor: "Assessor | None" = None,
    regions: str = "words", progress: bool = True, prompt: str | None = None,
) -> Refined:  # fmt: skip
    """Restore `image_lq`, then restore again the regions that the quality model names.

    restorer: a `Restorer`, or anything that `Restorer.from_pretrained` takes. iqa_or_reward: a `ZoomIQA`, which then
    also rates (`direct`), a `ZoomIQAReward`, or any other reward with `assessor`, the ZoomIQA that writes the words.
    rounds: largest number of regions to restore again. seeds_per_round: restorations of the whole image at the start,
    and of the region in each round; a deterministic restorer runs once. min_gain: smallest gain of the reward in its
    own units; None: 1/400 of its range. lr_consistency_slack_db: how far the LR-consistency of a kept region may lie
    below the highest one kept so far; 0 forbids any loss.
    out: folder, created if missing. If it holds this run, the run continues, also with more `rounds`.
    prompt: what the image shows, in place of the restorer's own prompt (None). A reward that needs a text gets it
    alone, without the model's directions, so that the values of all rounds can be compared.

    If the restorer takes text, the model's directions follow its prompt and the model's issues follow its negative
    prompt; at the start they are those about the low-quality image. A refused round is tried again with new seeds; the
    model is not called again, because the image has not changed. The run ends when the model asks for no closer look.
    The whole image is then not drawn again, because that would be more best-of-N.

    regions: `words` takes the region that the model names. `map` takes the worst view of the assessor's quality map of
    the present image, and after a refusal the next worse; it ends when no view is left that is worse than the best one.
    The words then still go into the prompts of a restorer that takes text.

    Raises ValueError for numbers out of range, other regions, an image of less than 5 px on a side, a reward that needs
    hr, or a text where there is none, or has no assessor, a folder of another run, a start without any valid candidate;
    ImageError; also the exceptions of the reward and the assessor.
    """
    rounds, seeds_per_round, seed = whole_numbers(rounds=rounds, seeds_per_round=seeds_per_round, seed=seed)
    if rounds < 1 or seeds_per_round < 1 or seed < 0:
        raise ValueError(
            f"rounds={rounds}, seeds_per_round={seeds_per_round}, seed={seed}: seed must be at least 0, "
            "the others at least 1"
        )
    if regions not in REGION_SOURCES:
        raise ValueError(f"regions={regions!r}: must be one of {', '.join(REGION_SOURCES)}")
    require_order("refine(restorer, image_lq, iqa_or_reward)", images={"image_lq": image_lq})
    reward, assessor = find_reward_and_assessor(iqa_or_reward, assessor)
    limits = limits_of(reward, min_gain, lr_consistency_slack_db)
    restorer = restorer if isinstance(restorer, Restorer) else Restorer.from_pretrained(restorer)
    if prompt is not None and restorer.takes_prompt:
        restorer = copy.copy(restorer)  # shares the engine; only its text is another
        restorer.prompt = prompt
    source = CandidateSource(restorer=restorer, prompt=prompt)
    require_texts([reward], [source], "prompt")
    image = load_image(image_lq).detach().cpu()
    if min(image.shape[1:]) <= 2 * LR_BORDER_PX:
        raise ValueError(
            f"image_lq: {image.shape[2]} x {image.shape[1]} px, but LR-consistency needs {2 * LR_BORDER_PX + 1} px on "
            "each side"
        )
    own_settings = settings_of(
        [CandidateSource(restorer=restorer, prompt=None)],
        {"lq": image, "hr": None},
        reward,
        seed,
        None,
        is_kept=out is not None,
    )
    settings = own_settings | limits | {"assessor": assessor.fingerprint, "seeds_per_round": seeds_per_round}
    if regions != "words":  # runs from before this choice hold no such setting
        settings["regions"] = regions
    if prompt is not None:
        settings["prompt"] = prompt
    folder = None if out is None else Path(out)
    with locked(folder):
        journal = Journal(folder, settings)
        began = time.monotonic()
        refining = Refining(restorer, image, reward, assessor, journal, settings, source.reward_text(None, image))
        refining.notes = [f"the input: {note}" for note in conversions(image_lq)]
        with refining.started(progress=progress):
            numbers = range(len(journal.history), rounds + 1)
            for number in progress_of(numbers, len(numbers), "refining", streaming=False) if progress else numbers:
                if journal.history[-1].stop is not None:
                    break
                refining.run(number)
            result = refining.result(rounds, time.monotonic() - began)
            if journal.folder is not None:
                write_artefacts(result, journal.folder)
    return result


class Refining:
    """One run: its inputs, and its rounds in the journal. Use `refine`."""

    def __init__(
        self, restorer: Restorer, image: Tensor, reward: Reward, assessor: "Assessor", journal: Journal,
        settings: dict[str, Any], reward_text: str,
    ) -> None:  # fmt: skip
        """image: CHW in [0, 1] on the CPU. settings: what stands in run.json; the limits are read from there."""
        self.reward_text = reward_text
        self.restorer, self.image, self.reward, self.assessor = restorer, image, reward, assessor
        self.journal, self.settings = journal, settings
        self.notes: list[str] = []
        self.is_mapped = settings.get("regions") == "map"
        self._mapped: tuple[int, QualityMap | None] = (-1, None)
        self.count = 1 if restorer.deterministic else settings["seeds_per_round"]

    @contextmanager
    def started(self, *, progress: bool) -> Iterator[None]:
        """Make round 0, or read it again. Inside, no other process can work in the run's folder."""
        done = self.journal.history[0] if self.journal.history else None
        zoom_request, texts = (None, {}) if done is None else (done.zoom_request, _texts_of(done))
        if done is None and self.restorer.engine.prompts:
            zoom_request = self._ask(to_pil(self.image), scale=1)
            texts = texts_for(self.restorer, zoom_request, self.image)
        guided = copy.copy(self.restorer)  # shares the engine; only its texts are another's
        for key, text in texts.items():
            setattr(guided, key, text)
        folder = None if self.journal.folder is None else self.journal.folder / "start"
        reward_prompt = self.reward_text if "prompts" in self.reward.needs else None
        self.start = best_of_n(guided, self.image, self.reward, n=self.count, seed=self.settings["seed"], out=folder,
                               progress=progress, reward_prompt=reward_prompt)  # fmt: skip
        with ExitStack() as stack:
            if folder is not None:
                stack.enter_context(open_run(folder, settings_in(self.start.report)))  # its lock is the whole run's
            if done is None:
                self._record_start(self.start, zoom_request, texts)
            yield

    def _record_start(self, start: BestOfN, zoom_request: ZoomRequest | None, texts: dict[str, str]) -> None:
        best = start.best
        unread = (
            ""
            if zoom_request is None or zoom_request.error is None
            else f"; low-quality image not assessed: {zoom_request.error}"
        )
        first = Round(
            number=0, zoom_request=zoom_request, reward=best.score, lr_consistency=self._consistency(best.image),
            accepted=True,
            reason=f"best of {len(start.candidates)} restorations of the whole image{unread}", pixels=best.pixels,
            prompt=texts.get("prompt"), negative_prompt=texts.get("negative_prompt"),
        )  # fmt: skip
        self.journal.add(first, best.image)

    def run(self, number: int) -> None:
        """Make one round and record it."""
        last, kept = self.journal.history[-1], self._kept()
        current = kept.image
        if self.is_mapped:
            zoom_request = self._worst_of_map(current, kept, last)
        elif last.accepted or last.zoom_request is None:
            zoom_request = self._ask(current, scale=current.width // self.image.shape[2])
        else:  # the image is the same, so the answer is too
            zoom_request = last.zoom_request
        round_ = Round(number=number, zoom_request=zoom_request)
        if zoom_request.error is not None:
            self.journal.add(replace(round_, stop="unreadable", reason=zoom_request.error), None)
        elif zoom_request.box is None:
            why = NOTHING_WORSE if self.is_mapped else "the model asks for no closer look"
            self.journal.add(replace(round_, stop="satisfied", reason=why), None)
        else:
            self.journal.add(
                *self._redrawn(round_, zoom_request, Region.around(zoom_request.box, self.image), kept, current)
            )

    def _redrawn(
        self, round_: Round, zoom_request: ZoomRequest, region: Region, kept: Round, current: Image.Image
    ) -> tuple[Round, Image.Image | None]:
        """Return the round after restoring its region, and its best try."""
        texts = texts_for(self.restorer, zoom_request, region.cut(self.image))
        floor = max(past.lr_consistency for past in self.journal.history if past.accepted)
        number_seed = candidate_seed(self.settings["seed"], ROUND_SEEDS + round_.number)
        seeds = [candidate_seed(number_seed, k) for k in range(self.count)]
        made = [self._attempt(seed, region, texts, current) for seed in seeds]
        before = math.nan
        if is_groupwise(self.reward):  # the image so far and the attempts are one group
            kept, made = self._scored_together(kept, current, made)
            before = kept.reward
        else:
            made = [(attempt if image is None else self._scored(attempt, image), image) for attempt, image in made]
        judge = acceptance_rule(kept, floor, self.settings["min_gain"], self.settings["lr_consistency_slack_db"])
        attempts = [attempt for attempt, _ in made]
        chosen = judge.best_of(attempts)
        best = next(image for attempt, image in made if attempt is chosen)
        accepted = judge.accepts(chosen)
        round_ = replace(
            round_, region=region.box, attempts=tuple(attempts), reward=chosen.reward, before=before,
            lr_consistency=chosen.lr_consistency, accepted=accepted, reason=judge.reason(attempts),
            pixels=None if best is None else pixels_digest(best),
            stop="deterministic" if self.restorer.deterministic and not accepted and not self.is_mapped else None,
            prompt=texts.get("prompt"), negative_prompt=texts.get("negative_prompt"),
        )  # fmt: skip
        return round_, best

    def _attempt(
        self, seed: int, region: Region, texts: dict[str, str], current: Image.Image
    ) -> tuple[Attempt, Image.Image | None]:
        """Restore the region once; return the attempt and the whole image with it.

        A region that lost its content is no attempt: the rule would not find it inside the whole image.
        """
        source = region.cut(self.image)
        try:
            [restored] = self.restorer.restore(
                source, [seed], prompt=texts.get("prompt"), negative_prompt=texts.get("negative_prompt")
            )
        except RestorationError as error:
            return Attempt(seed=seed, error=str(error)), None
        [nothing] = lost_content([restored.image], [source])
        if nothing is not None:
            return Attempt(seed=seed, error=f"of the region: {nothing}"), None
        image = to_pil(region.blended(load_image(current), restored.image, self.image))
        return Attempt(seed=seed, lr_consistency=self._consistency(image)), image

    def _scored(self, attempt: Attempt, image: Image.Image) -> Attempt:
        scores = self._ask_reward([image])
        return _with_score(attempt, scores, 0, self.reward.name)

    def _scored_together(
        self, kept: Round, current: Image.Image, made: list[tuple[Attempt, Image.Image | None]]
    ) -> tuple[Round, list[tuple[Attempt, Image.Image | None]]]:
        """Return the kept round and the attempts with values of one group: values of two groups cannot be compared."""
        scores = self._ask_reward([current, *(image for _, image in made if image is not None)])
        attempts: list[tuple[Attempt, Image.Image | None]] = []
        index = 1
        for attempt, image in made:
            if image is not None:
                attempt = _with_score(attempt, scores, index, self.reward.name)
                index += 1
            attempts.append((attempt, image))
        return replace(kept, reward=float(scores.value[0])), attempts

    def _ask_reward(self, images: list[Image.Image]) -> Scores:
        count = len(images)
        return ask_restorations(
            self.reward, [load_image(image) for image in images], lq=[self.image] * count,
            prompts=[self.reward_text] * count, groups=[0] * count,
        )  # fmt: skip

    def result(self, rounds: int, seconds: float) -> Refined:
        """Return the outcome of the first `rounds` rounds, with what stands in run.json."""
        history = tuple(self.journal.history[: rounds + 1])
        stopped = history[-1].stop or "budget"
        result = Refined(history=history, start=self.start, image_lq=self.image, stopped=stopped, report={})
        report = {
            "settings": self.settings, "arguments": {"rounds": rounds}, "stopped": stopped,
            "kept": result.kept.number, "reward": result.reward, "gain": result.gain,
            "lr_consistency": result.kept.lr_consistency,
            "notes": self.notes,
            "rounds": [row_of(round_, self.journal.folder) for round_ in history],
            "seconds": round(seconds, 3), "versions": self.start.report["versions"],
            "platform": self.start.report["platform"],
        }  # fmt: skip
        return replace(result, report=report)

    def _kept(self) -> Round:
        return next(round_ for round_ in reversed(self.journal.history) if round_.accepted)

    def _ask(self, image: Image.Image, scale: int) -> ZoomRequest:
        [assessment] = self.assessor.assess([load_image(image)], strict=True)
        return read_zoom_request(assessment, self.assessor.protocol, *image.size, scale)

    def _worst_of_map(self, current: Image.Image, kept: Round, last: Round) -> ZoomRequest:
        """Return the worst view of the present image's map that was not refused, with the words about that image."""
        scale = current.width // self.image.shape[2]
        words = ZoomRequest(box=None)
        if self.restorer.engine.prompts:
            words = self._ask(current, scale) if last.accepted or last.zoom_request is None else last.zoom_request
        number, quality = self._mapped
        if quality is None or number != kept.number:  # the map is the image's: a refused round changes nothing
            quality = quality_map(self.assessor, load_image(current), strict=True)
            self._mapped = (kept.number, quality)
        refused = {
            past.zoom_request.box for past in self.journal.history[kept.number + 1 :] if past.zoom_request is not None
        }
        return worst_view(quality, refused, scale, words)

    def _consistency(self, image: Image.Image) -> float:
        return lr_consistency(load_image(image), self.image)


def _with_score(attempt: Attempt, scores: Scores, index: int, name: str) -> Attempt:
    if not bool(scores.valid[index]):
        return replace(attempt, error=scores.reason(index, name))
    return replace(attempt, reward=float(scores.value[index]), valid=True)


def _texts_of(round_: Round) -> dict[str, str]:
    pairs = {"prompt": round_.prompt, "negative_prompt": round_.negative_prompt}
    return {key: text for key, text in pairs.items() if text is not None}
