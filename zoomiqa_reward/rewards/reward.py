"""What best-of-N, tuning and the self-test optimise: any `Reward`, from Zoom-IQA or from a metric of your own."""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, load_image
from zoomiqa_reward.model.gradients import require_gradient, require_graph
from zoomiqa_reward.model.ratings import Assessment, Scores
from zoomiqa_reward.model.zoomiqa import MODES, ZoomIQA, split_images

NEEDS = frozenset({"lq", "hr", "prompts"})


@runtime_checkable
class Reward(Protocol):
    """Anything that scores images. Higher is better, always: `value` comes back oriented."""

    name: str
    higher_is_better: bool
    """True; the value returned is already oriented."""
    score_range: tuple[float, float]
    """Smallest and largest value returned."""
    differentiable: bool
    deterministic: bool
    fingerprint: str
    """Cache key: what else would have to be the same for the same value."""
    needs: frozenset[str]
    """Which of lq, hr and prompts must be given."""

    def __call__(self, images: Any, lq: Any = None, hr: Any = None, prompts: Sequence[str] | None = None) -> Scores:
        """Return one score an image, in order."""
        ...


class MetricReward:
    """Any callable as a reward.

    `fn(image)` gets one float32 CHW image in [0, 1], on the CPU unless it came as a tensor, and returns a number (a
    float or a tensor of one element). What `needs` names is passed by keyword, for that image: `lq` and `hr` as
    such tensors, `prompts` as `prompt`, a text.
    """

    higher_is_better = True

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        higher_is_better: bool,
        score_range: tuple[float, float],
        needs: Collection[str] = (),
        *,
        differentiable: bool = False,
        deterministic: bool = True,
        fingerprint: str | None = None,
    ) -> None:
        """Wrap `fn`. higher_is_better and score_range are the metric's own; a lower-is-better one is negated.

        fingerprint: by default a hash of the name and of fn's source, which does not see weights or files that fn
        reads: give one that does where the cache must notice them.
        Raises ValueError for unknown needs or an empty range.
        """
        low, high = score_range
        if not low < high:
            raise ValueError(f"score_range={score_range}: the first number must be below the second")
        if unknown := sorted(set(needs) - NEEDS):
            raise ValueError(f"needs={unknown[0]!r}: must be among {', '.join(sorted(NEEDS))}")
        self.fn = fn
        self.name = name
        self.metric_higher_is_better = higher_is_better
        self.score_range = (float(low), float(high)) if higher_is_better else (-float(high), -float(low))
        self.needs = frozenset(needs)
        self.differentiable = differentiable
        self.deterministic = deterministic
        own = source_fingerprint(fn) if fingerprint is None else fingerprint
        text = f"{name}|{higher_is_better}|{own}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(
        self,
        images: Any,
        lq: Any = None,
        hr: Any = None,
        prompts: Sequence[str] | None = None,
        *,
        grad: bool = False,
    ) -> Scores:
        """Return the oriented values; `info["raw"]` holds the metric's own.

        An image that cannot be read, and a result of NaN or infinity, is not valid. Any other exception of `fn` is
        its bug and is raised. A differentiable metric keeps the graph of tensor images; `grad=True` makes sure that
        there is one. Raises ValueError where there is none then, or where something needed is missing or too short.
        """
        sources = split_images(images)
        if grad:
            if not self.differentiable:
                raise ValueError(
                    f"grad=True: reward {self.name!r} is not differentiable; wrap it with differentiable=True"
                )
            require_gradient(sources)
        given = self._needed(len(sources), lq=lq, hr=hr, prompts=prompts)
        values, errors = [], []
        for index, source in enumerate(sources):
            value, error = self._measure(source, {key: items[index] for key, items in given.items()})
            values.append(value)
            errors.append(error)
        home = next((value.device for value, error in zip(values, errors, strict=True) if error is None), None)
        raw = torch.stack([value.to(home) for value in values]) if values else torch.zeros(0)
        valid = torch.isfinite(raw.detach())
        nan = torch.full_like(raw, math.nan)
        value = torch.where(valid, raw if self.metric_higher_is_better else -raw, nan)
        if grad:
            require_graph(self.name, value, valid)
        return Scores(value=value, valid=valid, std=nan.clone(), info={"errors": errors, "raw": raw.detach().tolist()})

    def _needed(self, count: int, **given: Any) -> dict[str, list[Any]]:
        found = {}
        for key in sorted(self.needs):
            if given[key] is None:
                raise ValueError(f"reward {self.name!r} needs {key}=")
            found[key] = split_images(given[key])  # a list of texts is split as well
            if len(found[key]) != count:
                raise ValueError(f"reward {self.name!r}: {key} holds {len(found[key])} for {count} images")
        return found

    def _measure(self, source: Any, given: dict[str, Any]) -> tuple[Tensor, str | None]:
        try:
            others = {key: load_image(given[key]) for key in ("lq", "hr") if key in given}
            if "prompts" in given:
                others["prompt"] = given["prompts"]
            value = self.fn(load_image(source), **others)
        except ImageError as error:
            return torch.tensor(math.nan), str(error)
        value = value if isinstance(value, Tensor) else torch.tensor(float(value))
        value = value.to(torch.float32).reshape(())
        if not self.differentiable:
            value = value.detach().cpu()
        return value, None if bool(torch.isfinite(value)) else f"{self.name} returned {value.item()}"


class ZoomIQAReward:
    """A Zoom-IQA model as a reward: the rating, 1 bad .. 5 excellent."""

    higher_is_better = True
    score_range = (1.0, 5.0)
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        iqa: ZoomIQA,
        mode: str = "direct",
        *,
        strict: bool = True,
        batch_size: int = 8,
        question: str | None = None,
        num_samples: int = 1,
        seed: int | None = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap `iqa`; the arguments are those of `ZoomIQA.rate`. strict=True is the canonical rating.

        gradient_checkpointing: calls with grad=True recompute the layers' activations in `backward`, which takes
        less memory and more time; ratings and gradients are the same.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        self.iqa = iqa
        self.mode = mode
        self.strict = strict
        self.gradient_checkpointing = gradient_checkpointing
        self._options: dict[str, Any] = {"batch_size": batch_size, "question": question}
        if mode == "reason":
            self._options |= {"num_samples": num_samples, "seed": seed}
        elif num_samples != 1:
            raise ValueError("num_samples belongs to mode='reason'; 'direct' samples nothing")
        self.name = f"zoomiqa-{iqa.name}-{mode}"
        self.deterministic = mode == "direct" or num_samples == 1 or seed is not None

    @property
    def differentiable(self) -> bool:
        """Whether grad=True works: in mode `direct` of a model in this process; text has no gradient."""
        return self.mode == "direct" and self.iqa.differentiable

    @property
    def fingerprint(self) -> str:
        """The model's, with how it is asked and whether each image is read alone."""
        asked = {key: value for key, value in self._options.items() if not self.strict or key != "batch_size"}
        text = f"{self.iqa.fingerprint}|{self.mode}|{self.strict}|{sorted(asked.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(
        self,
        images: Any,
        lq: Any = None,
        hr: Any = None,
        prompts: Sequence[str] | None = None,
        *,
        grad: bool = False,
    ) -> Scores:
        """Return the ratings; lq, hr and prompts are not looked at.

        An image that cannot be read is not valid and named in `info["errors"]`; the others are measured.
        grad=True: the values keep a graph to the images, which must all be tensors that require a gradient. Each
        value depends on its own image only, all of its views included; one that could not be measured has none. The
        model's parameters get no gradient. The numbers are those without grad, on the model's device.
        Raises ValueError where there can be no graph: mode `reason`, other images, inside `torch.no_grad()`.
        """
        sources = split_images(images)
        if grad:
            if not self.differentiable:
                raise ValueError(
                    f"grad=True: mode={self.mode!r} answers in text, which has no gradient; use mode='direct'"
                )
            require_gradient(sources)
        errors: list[str | None] = [None] * len(sources)
        answers: dict[int, Assessment] = {}
        found: dict[int, tuple[Tensor, Tensor]] = {}
        step = 1 if self.strict else int(self._options["batch_size"])
        for start in range(0, len(sources), step):
            readable: dict[int, Tensor] = {}
            for index in range(start, min(start + step, len(sources))):
                try:
                    readable[index] = load_image(sources[index])
                except ImageError as error:
                    errors[index] = str(error)
            self._rate(readable, found, answers, errors, grad)
        home = next((mean.device for mean, _ in found.values()), torch.device("cpu"))
        missing = (torch.tensor(math.nan, device=home),) * 2
        pairs = [found.get(index, missing) for index in range(len(sources))]
        value = torch.stack([mean for mean, _ in pairs]) if pairs else torch.zeros(0)
        std = torch.stack([spread for _, spread in pairs]).detach() if pairs else torch.zeros(0)
        info: dict[str, Any] = {"errors": errors}
        if self.mode == "reason":
            info["answers"] = [answers.get(index) for index in range(len(sources))]
        return Scores(value=value, valid=~value.detach().isnan(), std=std, info=info)

    def _rate(
        self,
        images: dict[int, Tensor],
        found: dict[int, tuple[Tensor, Tensor]],
        answers: dict[int, Assessment],
        errors: list[str | None],
        grad: bool,
    ) -> None:
        """Put (rating, std) and the first answer of the images, by their places, into `found` and `answers`."""
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
            for place, image in images.items():
                self._rate({place: image}, found, answers, errors, grad)
            return
        for row, place in enumerate(images):
            found[place] = (ratings.mean[row], ratings.std[row])
            if ratings.answers is not None:
                answers[place] = ratings.answers[row][0]
            if not bool(ratings.valid[row]):
                known = ratings.errors[row] if ratings.errors else None
                errors[place] = known or "the answer could not be read as a rating"


def source_fingerprint(fn: Callable[..., Any]) -> str:
    """Return a text that changes with the code of `fn`; a partial's arguments and a callable object's class count."""
    if isinstance(fn, functools.partial):
        return f"{source_fingerprint(fn.func)}{fn.args!r}{sorted(fn.keywords.items())!r}"
    code = fn if inspect.isroutine(fn) or inspect.isclass(fn) else type(fn)
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):  # built in, or typed at a prompt
        return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', repr(code))}"
