"""Turn any function of an image into a reward."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model.gradients import require_gradient, require_graph
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import NEEDS, Default, Reward, label_metrics, needed_inputs, require_pointwise
from zoomiqa_reward.rewards.code_reach import reach_of
from zoomiqa_reward.rewards.identity import state_digest


class MetricReward(Reward):
    """Turn any function of an image into a reward.

    `fn(image)` gets one float32 CHW image in [0, 1], on the CPU unless it came as a tensor. It returns a number: a
    float or a tensor of one element. Inputs in `needs` are passed by keyword, for that image: `lq` and `hr` as such
    tensors, `prompts` as the text `prompt`.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor | float],
        name: str,
        higher_is_better: bool,
        score_range: tuple[float, float],
        needs: Collection[str] = (),
        *,
        differentiable: bool = False,
        deterministic: bool = True,
        fingerprint: str | None = None,
    ) -> None:
        """Wrap `fn`. higher_is_better and score_range describe the metric; if lower is better, its values are negated.

        fingerprint: by default it is computed from the state of fn each time: code, closures, attributes, arrays and
        weights in memory. It does not cover files that fn reads; then pass a text that names them. If the state
        cannot be read, the property raises UnknownState.
        Raises ValueError for unknown needs or an empty range; GroupwiseError where fn asks a reward that compares
        images within a group, because fn gets one image at a time.
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
        self._given_fingerprint = fingerprint
        require_pointwise(self, "a metric gets one image at a time")

    @property
    def fingerprint(self) -> str:
        """Covers the name, the orientation, the range, what `fn` is given and everything that it depends on."""
        identified = self.fn if self._given_fingerprint is None else self._given_fingerprint
        return state_digest(
            self.name, self.metric_higher_is_better, list(self.score_range), sorted(self.needs), identified
        )

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
        """
        sources = split_images(images)
        if grad:
            if not self.differentiable:
                raise ValueError(
                    f"grad=True: reward {self.name!r} is not differentiable; wrap it with differentiable=True"
                )
            require_gradient(sources)
        given = needed_inputs(self, len(sources), lq=lq, hr=hr, prompts=prompts)
        values, errors = [], []
        for index, source in enumerate(sources):
            value, error = self._measure(source, {key: items[index] for key, items in given.items()})
            values.append(value)
            errors.append(error)
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

    def _measure(self, source: ImageSource, given: dict[str, Any]) -> tuple[Tensor, str | None]:
        try:
            others: dict[str, Any] = {key: load_image(given[key]) for key in ("lq", "hr") if key in given}
            if "prompts" in given:
                others["prompt"] = given["prompts"]
            value = self.fn(load_image(source), **others)
        except ImageError as error:
            return torch.tensor(math.nan), str(error)
        except Exception as error:
            error.add_note(f"raised by the reward {self.name!r}")
            raise
        value = value if isinstance(value, Tensor) else torch.tensor(float(value))
        value = value.to(torch.float32).reshape(())
        if not self.differentiable:
            value = value.detach().cpu()
        elif bool(value.isnan()):  # through its graph even a gradient of 0 would become NaN
            value = value.detach()
        worst = -math.inf if self.metric_higher_is_better else math.inf
        is_measured = not bool(value.isnan()) and value.item() != worst
        return value, None if is_measured else f"{self.name} returned {value.item()}"


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
