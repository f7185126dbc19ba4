"""A Zoom-IQA model as a reward."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoomiqa_reward.images.loading import ImageError, ImageSources, load_image, split_images
from zoomiqa_reward.model.decoding import require_mode
from zoomiqa_reward.model.gradients import require_gradient
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Assessment, Scores
from zoomiqa_reward.model.turns import require_question
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.argument_order import require_object
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.runs.settings import identity_of
from zoomiqa_reward.whole_numbers import batch_size_of

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA


class ZoomIQAReward(Reward):
    """A Zoom-IQA model as a reward: its rating from 1 (bad) to 5 (excellent)."""

    score_range = (1.0, 5.0)

    def __init__(
        self,
        iqa: "ZoomIQA | RemoteZoomIQA",
        mode: str = "direct",
        *,
        strict: bool = True,
        batch_size: int = 8,
        question: str | None = None,
        num_samples: int = 1,
        seed: int | None = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap `iqa`. The arguments are those of `ZoomIQA.rate`; strict=True gives the reference value.

        gradient_checkpointing: with grad=True, `backward` recomputes the activations of the layers. This takes less
        memory and more time; ratings and gradients are the same.
        """
        require_object("iqa", iqa)
        require_mode(mode, num_samples)
        require_question(question)
        self.iqa = iqa
        self.mode = mode
        self.strict = strict
        self.gradient_checkpointing = gradient_checkpointing
        self._options: dict[str, Any] = {"batch_size": batch_size_of(batch_size), "question": question}
        if mode == "reason":
            self._options |= {"num_samples": num_samples, "seed": seed}
        self.name = f"zoomiqa-{iqa.name}-{mode}"
        self.deterministic = mode == "direct" or num_samples == 1 or seed is not None

    @property
    def differentiable(self) -> bool:  # type: ignore[override] # no value to assign: it follows from the model
        """Whether grad=True works: only in mode `direct` of a model in this process, because text has no gradient."""
        return self.mode == "direct" and self.iqa.differentiable

    @property
    def parts(self) -> tuple[Reward, ...]:
        """Empty: it holds a model and no other rewards."""
        return ()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The network of the model; empty if the model is on a server."""
        checkpoint = getattr(self.iqa, "checkpoint", None)
        return () if checkpoint is None else (checkpoint.model,)

    @property
    def labels(self) -> frozenset[str]:
        """The metrics that made the training labels of the model."""
        return frozenset(str(name).lower() for name in self.iqa.protocol.label_metrics)

    @property
    def fingerprint(self) -> str:
        """Covers the model, the mode and options, and `strict`."""
        asked = self.mode, self.strict, sorted(self._asked().items())
        return state_digest(self.iqa.fingerprint, *asked, *added_by_subclass(self, ZoomIQAReward))

    @property
    def identity(self) -> dict[str, object]:
        """Name, mode and options, and the identity of the model."""
        return {"name": self.name, "mode": self.mode, "strict": self.strict, **self._asked(),
                "model": identity_of(self.iqa)}  # fmt: skip

    def _asked(self) -> dict[str, Any]:
        return {key: value for key, value in self._options.items() if not self.strict or key != "batch_size"}

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return the ratings; lq, hr and prompts are ignored.

        An image that cannot be read is not valid, and `errors` names it; the others are measured.
        grad=True: the values keep a graph to the images, which must all be tensors that require a gradient. Each
        value depends only on its own image, with all of its views. An image that could not be measured has no graph.
        The parameters of the model get no gradient. The values equal those without grad, on the device of the model.
        Raises ValueError if there can be no graph: mode `reason`, other images, inside `torch.no_grad()`.
        """
        sources = split_images(images)
        if grad:
            if not self.differentiable:
                raise ValueError(
                    f"grad=True: mode={self.mode!r} answers in text, which has no gradient; use mode='direct'"
                )
            require_gradient(sources)
        errors: list[str | None] = [None] * len(sources)
        answers: dict[int, tuple[Assessment, ...]] = {}
        ratings: dict[int, tuple[Tensor, Tensor]] = {}
        step = 1 if self.strict else int(self._options["batch_size"])
        for start in range(0, len(sources), step):
            readable: dict[int, Tensor] = {}
            for index in range(start, min(start + step, len(sources))):
                try:
                    readable[index] = load_image(sources[index])
                except ImageError as error:
                    errors[index] = str(error)
            self._rate(readable, ratings, answers, errors, grad)
        home = next((mean.device for mean, _ in ratings.values()), torch.device("cpu"))
        missing = (torch.tensor(math.nan, device=home),) * 2
        pairs = [ratings.get(index, missing) for index in range(len(sources))]
        value = torch.stack([mean for mean, _ in pairs]) if pairs else torch.zeros(0)
        std = torch.stack([spread for _, spread in pairs]).detach() if pairs else torch.zeros(0)
        words = tuple(answers.get(index, ()) for index in range(len(sources))) if self.mode == "reason" else None
        return Scores(value=value, valid=~value.detach().isnan(), std=std, errors=tuple(errors), answers=words)

    def _rate(
        self,
        images: dict[int, Tensor],
        results: dict[int, tuple[Tensor, Tensor]],
        answers: dict[int, tuple[Assessment, ...]],
        errors: list[str | None],
        grad: bool,
    ) -> None:
        """Put (rating, std) and the answers of the images, by their places, into `results` and `answers`."""
        if not images:
            return
        options = self._options | (
            {"grad": True, "gradient_checkpointing": self.gradient_checkpointing} if grad else {}
        )
        try:
            ratings = self.iqa.rate(list(images.values()), mode=self.mode, strict=self.strict, **options)
        except ImageError as error:  # readable, but of a shape that the processor refuses
            if len(images) == 1:
                errors[next(iter(images))] = str(error)
                return
            for index, image in images.items():
                self._rate({index: image}, results, answers, errors, grad)
            return
        for row, index in enumerate(images):
            results[index] = (ratings.mean[row], ratings.std[row])
            if ratings.answers is not None:
                answers[index] = ratings.answers[row]
            if not bool(ratings.valid[row]):
                errors[index] = ratings.reason(row, self.name)
