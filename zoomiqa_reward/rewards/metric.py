"""Turn any function of an image into a reward."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model.gradients import refuse_dropout, require_gradient, require_graph
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.argument_order import require_object
from zoomiqa_reward.rewards.base import (
    NEEDS,
    Default,
    NoReward,
    Reward,
    label_metrics,
    needed_inputs,
    require_pointwise,
)
from zoomiqa_reward.rewards.code_reach import reach_of
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.whole_numbers import batch_size_of

FunctionValue = Tensor | float | Sequence[float] | NDArray[np.float32]
"""What a function returns: a number, or several with `batched=True`."""


class MetricReward(Reward):
    """Turn any function of an image into a reward.

    `fn(image)` gets one float32 CHW image in [0, 1], on the CPU unless it came as a tensor. It returns a number: a
    float or a tensor of one element. Inputs in `needs` are passed by keyword, for that image: `lq` and `hr` as such
    tensors, `prompts` as the text `prompt`.

    With `batched=True`, `fn(images)` gets a BCHW batch of such images of one size, at most `batch_size`, and returns B
    numbers: a tensor, an array or a list. `lq` and `hr` are BCHW batches then, and `prompts` is a list of B texts.
    """

    def __init__(
        self,
        fn: Callable[..., FunctionValue],
        name: str,
        higher_is_better: bool,
        score_range: tuple[float, float],
        needs: Collection[str] = (),
        *,
        differentiable: bool = False,
        deterministic: bool = True,
        fingerprint: str | None = None,
        batched: bool = False,
        batch_size: int = 8,
    ) -> None:
        """Wrap `fn`. higher_is_better and score_range describe the metric; if lower is better, its values are negated.

        fingerprint: by default it is computed from the state of fn each time: code, closures, attributes, arrays and
        weights in memory. It does not cover files that fn reads; then pass a text that names them. If the state
        cannot be read, the property raises UnknownState.
        Raises ValueError for unknown needs, an empty range or a batch size below 1; GroupwiseError where fn asks a
        reward that compares images within a group, because images are given to fn without their group; TypeError for a
        class, for a batch size that is not whole and a `higher_is_better` that is neither True nor False.
        """
        require_object("fn", fn)
        if not isinstance(higher_is_better, bool | np.bool_):  # a text such as "lower" is true
            raise TypeError(f"higher_is_better={higher_is_better!r}: must be True or False")
        low, high = score_range
        if not low < high:
            raise ValueError(f"score_range={score_range}: the first number must be below the second")
        if unknown := sorted(set(needs) - NEEDS):
            raise ValueError(f"needs={unknown[0]!r}: must be among {', '.join(sorted(NEEDS))}")
        self.fn = fn
        self.batched, self.batch_size = batched, batch_size_of(batch_size)
        self.name = name
        self.metric_higher_is_better = higher_is_better
        self.score_range = (float(low), float(high)) if higher_is_better else (-float(high), -float(low))
        self.needs = frozenset(needs)
        self.differentiable = differentiable
        self.deterministic = deterministic
        self._given_fingerprint = fingerprint
        require_pointwise(
            self, "a metric gets batches without their groups" if batched else "a metric gets one image at a time"
        )

    @property
    def fingerprint(self) -> str:
        """Covers the name, the orientation, the range, what `fn` is given and everything that it depends on."""
        identified = self.fn if self._given_fingerprint is None else self._given_fingerprint
        form = ["batched"] if self.batched else []
        return state_digest(
            self.name, self.metric_higher_is_better, list(self.score_range), sorted(self.needs), identified, *form,
            *added_by_subclass(self, MetricReward),
        )  # fmt: skip

    @Default
    def labels(self) -> frozenset[str]:
        """Names of the functions that `fn` is or calls, beside those of the default: they must not judge its work."""
        return frozenset((*label_metrics(self), *called_names(self.fn)))

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return values where higher is better; `info["raw"]` holds the values of `fn`.

        An image is not valid if it cannot be read, or if the result is NaN or infinitely bad. An infinitely good result
        becomes the best end of `score_range`, or infinity if the range has no end. Any other exception of `fn` is
        raised. A differentiable metric keeps the graph of tensor images, and `grad=True` requires it. Raises
        ValueError if that graph is missing, or if a needed input is missing or too short.

        `batched`: a call of `fn` that fails is repeated image by image. An image that fails alone is then not valid;
        the exception is raised only if no image could be measured. The neighbours of an image in its batch may change
        the last bits of its value.
        Raises NoReward unless `fn` returns one number per image; ValueError for a network in training mode that drops
        anything or normalises over a batch, unless the reward is declared random.
        """
        sources = split_images(images)
        if grad:
            if not self.differentiable:
                raise ValueError(
                    f"grad=True: reward {self.name!r} is not differentiable; wrap it with differentiable=True"
                )
            require_gradient(sources)
        given = needed_inputs(self, len(sources), lq=lq, hr=hr, prompts=prompts)
        rows = [{key: items[index] for key, items in given.items()} for index in range(len(sources))]
        if self.batched:
            measured = self._measure_batches(sources, rows)
        else:
            measured = [self._measure(source, row) for source, row in zip(sources, rows, strict=True)]
        if self.deterministic:  # after the call, for `fn` may switch its network itself
            self._refuse_training()
        values, errors = [value for value, _ in measured], [error for _, error in measured]
        home = next((value.device for value, error in zip(values, errors, strict=True) if error is None), None)
        raw = torch.stack([value.to(home) for value in values]) if values else torch.zeros(0)
        nan = torch.full_like(raw, math.nan)
        oriented = raw if self.metric_higher_is_better else -raw
        oriented = torch.where(oriented.detach() == math.inf, torch.full_like(raw, self.score_range[1]), oriented)
        valid = ~oriented.detach().isnan() & (oriented.detach() != -math.inf)
        value = torch.where(valid, oriented, nan)
        if grad:
            require_graph(self.name, value, valid)
        return Scores(
            value=value, valid=valid, std=nan.clone(), errors=tuple(errors), info={"raw": raw.detach().tolist()}
        )

    def _refuse_training(self) -> None:
        for network in self.modules:
            try:
                refuse_dropout(network)
            except ValueError as error:
                raise ValueError(f"reward {self.name!r}: {error}, or wrap it with deterministic=False") from error

    def _measure(self, source: ImageSource, given: dict[str, Any]) -> tuple[Tensor, str | None]:
        try:
            others: dict[str, Any] = {key: load_image(given[key]) for key in ("lq", "hr") if key in given}
            if "prompts" in given:
                others["prompt"] = given["prompts"]
            image = load_image(source)
            value: Any = self.fn(image, **others)
            if math.prod(shape := tuple(np.shape(value))) != 1:
                raise NoReward(
                    f"reward {self.name!r}: fn returned shape {shape} for one image; it must return one number, such "
                    "as the mean; a function of a batch needs batched=True"
                )
            value = value.clone() if isinstance(value, Tensor) else torch.tensor(float(value))  # fn may write over it
        except ImageError as error:
            return torch.tensor(math.nan), str(error)
        except NoReward:
            raise
        except Exception as error:
            error.add_note(f"raised by the reward {self.name!r}")
            raise
        return self._checked(value, image)

    def _checked(self, value: Tensor, shown: Tensor) -> tuple[Tensor, str | None]:
        """Return a value of `fn` as float32 without dimensions, and why it is no measurement.

        An infinitely good one of the image that was shown has the gradient 0.
        """
        value = value.to(torch.float32).reshape(())
        worst = -math.inf if self.metric_higher_is_better else math.inf
        if not self.differentiable:
            value = value.detach().cpu()
        elif not bool(value.isfinite()):  # through its graph even a gradient of 0 would become NaN
            value = value.detach() + 0.0 * shown.sum().to(value) if bool(value == -worst) else value.detach()
        is_measured = not bool(value.isnan()) and value.item() != worst
        return value, None if is_measured else f"{self.name} returned {value.item()}"

    def _measure_batches(
        self, sources: list[ImageSource], rows: list[dict[str, Any]]
    ) -> list[tuple[Tensor, str | None]]:
        """Return the value and the error of each image, in order, by calls of `fn` with images of one size."""
        results: dict[int, tuple[Tensor, str | None]] = {}
        failures: dict[int, Exception] = {}
        waiting: dict[Hashable, list[LoadedImage]] = {}

        def ask(samples: list[LoadedImage]) -> None:
            for sample, value in zip(samples, self._ask_batch(samples), strict=True):
                if isinstance(value, Exception):
                    failures[sample.position] = value
                else:
                    results[sample.position] = self._checked(value, sample.image)

        for index, (source, row) in enumerate(zip(sources, rows, strict=True)):
            try:
                others: dict[str, Tensor] = {key: load_image(row[key]) for key in ("lq", "hr") if key in row}
                sample = LoadedImage(index, load_image(source), others, row.get("prompts"))
            except ImageError as error:
                results[index] = torch.tensor(math.nan), str(error)
                continue
            samples = waiting.setdefault(sample.form, [])
            samples.append(sample)
            if len(samples) == self.batch_size:
                ask(waiting.pop(sample.form))
        for samples in waiting.values():
            ask(samples)
        raised = [error for error in failures.values() if not isinstance(error, ImageError)]
        if raised and all(error is not None for _, error in results.values()):
            raised[0].add_note(f"raised by the reward {self.name!r}, which could measure no image of the call")
            raise raised[0]
        results |= {index: (torch.tensor(math.nan), _reason(error)) for index, error in failures.items()}
        return [results[index] for index in range(len(sources))]

    def _ask_batch(self, samples: list["LoadedImage"]) -> list[Tensor | Exception]:
        """Return what `fn` gives for each image of one size, or what it raises for that image alone."""
        try:
            values = self._call(samples)
        except NoReward:
            raise
        except _FAILURES as error:
            if len(samples) == 1:
                return [error]
        except Exception as error:
            error.add_note(f"raised by the reward {self.name!r}")
            raise
        else:  # a graph of NaN or infinity would make the gradient of the whole batch NaN
            if len(samples) == 1 or not values.requires_grad or bool(values.isfinite().all()):
                return list(values)
        return [self._ask_batch([sample])[0] for sample in samples]

    def _call(self, samples: list["LoadedImage"]) -> Tensor:
        others: dict[str, Any] = {
            key: torch.stack([sample.others[key] for sample in samples]) for key in samples[0].others
        }
        if "prompts" in self.needs:
            others["prompts"] = [sample.prompt for sample in samples]
        values: Any = self.fn(torch.stack([sample.image for sample in samples]), **others)
        if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
            values = torch.stack([torch.as_tensor(value).reshape(()) for value in values])
        numbers: Tensor = torch.as_tensor(values)
        if numbers.numel() != len(samples):
            raise NoReward(
                f"reward {self.name!r}: fn returned shape {tuple(numbers.shape)} for {len(samples)} images; with "
                "batched=True it must return one number per image"
            )
        return numbers.reshape(len(samples)).clone()  # fn may write over them


_FAILURES = (RuntimeError, ValueError, ArithmeticError, OSError)
"""What a function may fail with on some images (out of memory, a size that it cannot take); a TypeError is a bug."""


@dataclass(frozen=True)
class LoadedImage:
    """One image of a call, with what is given with it."""

    position: int
    image: Tensor
    others: dict[str, Tensor]
    prompt: str | None

    @property
    def form(self) -> Hashable:
        """Equal for images that can stand in one batch: sizes and devices."""
        return tuple((tuple(image.shape), str(image.device)) for image in (self.image, *self.others.values()))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"


def called_names(fn: Callable[..., object]) -> Iterator[str]:
    """Yield the name of a function and of those functions that its code refers to, one level deep."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    plain = inspect.unwrap(getattr(fn, "__func__", fn))
    if not isinstance(plain, FunctionType):
        return
    yield plain.__name__
    reach = reach_of(plain.__code__)
    referred = [plain.__globals__.get(name) for name in reach.globals]
    for cell in plain.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            referred.append(cell.cell_contents)
    for value in referred:
        if isinstance(value, ModuleType):
            yield from (name for name in reach.names if isinstance(getattr(value, name, None), FunctionType))
        elif isinstance(value, FunctionType):
            yield value.__name__
