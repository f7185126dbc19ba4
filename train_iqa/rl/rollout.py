"""Sampled trajectories: what the model answers to an image, with real crops, through the very path of inference.

`assess_images` does the asking, reading and cropping; only its writer is replaced by one that samples and keeps, for
each answer, the tokens and their log-probabilities. A trajectory of two rounds is two independent rows. Who samples is
exchangeable: the decoding of inference here (transformers' `generate` where that cannot read the model), vLLM in
`vllm_rollout`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessor

from train_iqa.rows.completions import TrainingRow
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.decode import write_answers
from zoomiqa_reward.model.generate import (
    Completion,
    SampledChoice,
    Sampling,
    end_tokens,
    sampling_processors,
    write_ids,
)
from zoomiqa_reward.model.inputs import TokenRow, collate
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.reading import SharedReading, reads_itself
from zoomiqa_reward.model.reason import assess_images


@dataclass(frozen=True, kw_only=True)
class SampledAnswer:
    """One answer as it was sampled."""

    ids: Tensor
    """int64 [tokens], at least 1, on the CPU; with the end token, where the answer was not cut short."""
    logprobs: Tensor
    """float32 [tokens], on the CPU, as the sampler saw them."""


Draw = Callable[[Checkpoint, Sequence[TokenRow], Sampling], list[SampledAnswer]]
"""What samples one answer for each row, in order."""


@dataclass(frozen=True, kw_only=True)
class SampledTurn:
    """One sampled answer as a row."""

    row: TrainingRow
    """On the CPU; all its tokens are targets."""
    logprobs: Tensor
    """float32 [tokens] as the sampler saw them."""
    is_truncated: bool


@dataclass(frozen=True, kw_only=True)
class AnswerTrajectory:
    """One sampled assessment of an image."""

    assessment: Assessment
    turns: tuple[SampledTurn, ...]
    """One for each turn of the assessment."""


def roll_out(
    checkpoint: Checkpoint,
    images: Sequence[Tensor],
    *,
    num_samples: int,
    sampling: Sampling,
    draw: Draw | None = None,
) -> list[list[AnswerTrajectory]]:
    """Return for each float32 CHW image `num_samples` trajectories, all images' first rounds written in one batch.

    The checkpoint's model must be in eval mode. Images without content are asked about too, for the data set has a
    score for them. With a seed, an image's trajectories depend on seed, weights and image alone (up to rounding: who
    is written together may change the last bits of the logits).
    draw: another sampler than this process.
    Raises ValueError for decoding whose log-probabilities could not be recomputed: greedy, top-p or top-k.
    """
    if sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k > 0:
        raise ValueError(
            f"temperature={sampling.temperature}, top_p={sampling.top_p}, top_k={sampling.top_k}: rollouts sample "
            f"from the whole distribution; use a temperature above 0, top_p=1 and top_k=0"
        )
    writer = _Writer(draw or partial(draw_answers, shared=SharedReading()))
    assessments = assess_images(
        checkpoint, images, sampling=sampling, num_samples=num_samples, batch_size=num_samples * len(images),
        skip_empty=False, write=writer,
    )  # fmt: skip
    flat = [assessment for samples in assessments for assessment in samples]
    firsts = writer.calls[0]
    seconds = iter(writer.calls[1] if len(writer.calls) > 1 else ())
    trajectories = []
    for assessment, first in zip(flat, firsts, strict=True):
        turns = (first,) if len(assessment.turns) == 1 else (first, next(seconds))
        trajectories.append(AnswerTrajectory(assessment=assessment, turns=turns))
    assert next(seconds, None) is None, "a second round belongs to no trajectory"
    return [trajectories[start : start + num_samples] for start in range(0, len(trajectories), num_samples)]


class _RecordedChoice(SampledChoice):
    """A draw for each row, of which the log-probability is kept; memory is one step's logits, not all steps'."""

    def __init__(self, checkpoint: Checkpoint, sampling: Sampling, num_rows: int) -> None:
        super().__init__(checkpoint, sampling, num_rows)
        self.processors.insert(0, self._hold)  # behind the suppressed tokens, before the temperature
        self._temperature, self._alive = sampling.temperature, list(range(num_rows))
        self._held: Tensor | None = None
        self._steps: list[Tensor] = []
        self.logprobs: list[list[float]] = [[] for _ in range(num_rows)]
        """Of each row's tokens, and of what it wrote after its end until the host looked."""

    def _hold(self, _: object, scores: Tensor) -> Tensor:
        self._held = (scores / self._temperature).log_softmax(dim=-1)
        return scores

    def chosen(self, tokens: Tensor) -> None:
        """Record the log-probabilities of the tokens under the distribution that they were drawn from."""
        assert self._held is not None
        self._steps.append(self._held.gather(-1, tokens[:, None])[:, 0])
        self._held = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows."""
        self.settle()
        self._alive = [self._alive[row] for row in rows]
        super().keep(rows)

    def settle(self) -> None:
        """Give what was kept on the device to its rows."""
        if self._steps:
            for row, values in zip(self._alive, torch.stack(self._steps, dim=1).tolist(), strict=True):
                self.logprobs[row] += values
        self._steps = []


def draw_answers(
    checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling, *, shared: SharedReading | None = None
) -> list[SampledAnswer]:
    """Return one answer for each row, drawn by a generator of its own; samples of one image share its reading.

    shared: what was read already with these weights.
    """
    if not reads_itself(checkpoint):
        return draw_by_transformers(checkpoint, rows, sampling)
    choice = _RecordedChoice(checkpoint, sampling, len(rows))
    answers = write_answers(
        checkpoint, rows, choice, max_new_tokens=sampling.max_new_tokens, ends=end_tokens(checkpoint), shared=shared
    )  # fmt: skip
    choice.settle()
    return [
        SampledAnswer(ids=torch.tensor(ids, dtype=torch.int64), logprobs=torch.tensor(values[: len(ids)]))
        for ids, values in zip(answers, choice.logprobs, strict=True)
    ]


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each token that is chosen; memory is one step's logits, not all steps'.

    It stands after the suppressed tokens are out and before the temperature, which it applies itself.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.held: Tensor | None = None
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.take(input_ids)
        self.held = (scores.float() / self.temperature).log_softmax(dim=-1)
        return scores

    def take(self, input_ids: Tensor) -> None:
        """Price the last token of each row under the distribution that it was drawn from."""
        if self.held is not None:
            self.logprobs.append(self.held.gather(-1, input_ids[:, -1:])[:, 0])
            self.held = None


@torch.no_grad()
def draw_by_transformers(checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling) -> list[SampledAnswer]:
    """Return one answer for each row, all written in one batch, each drawn by a generator of its own."""
    ends, recorder, batch = end_tokens(checkpoint), _Recorder(sampling.temperature), collate(checkpoint, rows)
    ids = write_ids(checkpoint, batch, sampling, [recorder, *sampling_processors(sampling, len(rows))])
    recorder.take(ids)
    new, logprobs = ids[:, batch["input_ids"].shape[1] :].cpu(), torch.stack(recorder.logprobs, dim=1).cpu()
    drawn = []
    for index, tokens in enumerate(new.tolist()):
        end = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
        count = min(end + 1, len(tokens))
        drawn.append(SampledAnswer(ids=new[index, :count].clone(), logprobs=logprobs[index, :count].clone()))
    return drawn


class _Writer:
    """The `write` of `assess_images`: lets `draw` sample, and keeps what was sampled, call by call."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.calls: list[list[SampledTurn]] = []

    def __call__(self, checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling) -> list[Completion]:
        drawn, ends = self.draw(checkpoint, rows, sampling), end_tokens(checkpoint)
        turns, answers = [], []
        for shared, answer in zip(on_cpu(rows), drawn, strict=True):
            tokens = answer.ids.tolist()
            is_truncated = tokens[-1] not in ends
            row = TrainingRow(
                prompt=shared, completion_ids=answer.ids, targets=torch.ones(len(tokens), dtype=torch.bool)
            )
            turns.append(SampledTurn(row=row, logprobs=answer.logprobs, is_truncated=is_truncated))
            text = checkpoint.tokenizer.decode(
                tokens if is_truncated else tokens[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            answers.append(Completion(text=text, is_truncated=is_truncated))
        self.calls.append(turns)
        return answers


def on_cpu(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return the rows on the CPU; neighbours of equal pixels (the samples of one image) share them."""
    moved: list[TokenRow] = []
    for row in rows:
        pixels = row.pixel_values.cpu()
        if moved and moved[-1].pixel_values.shape == pixels.shape and torch.equal(moved[-1].pixel_values, pixels):
            pixels = moved[-1].pixel_values
        moved.append(replace(row, pixel_values=pixels, image_grid_thw=row.image_grid_thw.cpu(), parts=()))
    return moved
