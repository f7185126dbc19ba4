"""The interface of a reward, as best-of-N, tuning, the check, the cache and the server use it.

Subclass `Reward` and give `name`, `score_range` and `__call__`; every other member has a default. The defaults of
`groupwise` and `labels` follow from `parts`, and `parts` finds the rewards in an object's attributes. So every guard
sees through a new wrapper, even if its author declares nothing. Objects that have the members without subclassing work
too: the functions below apply the same defaults to them.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import Parameter, getattr_static, signature
from typing import Any, Generic, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import ImageSources, split_images
from zoomiqa_reward.model.gradients import require_graph
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.identity import state_digest
from zoomiqa_reward.rewards.members import find_members

NEEDS = frozenset({"lq", "hr", "prompts"})
REQUIRED = ("name", "score_range", "differentiable", "deterministic", "needs")
"""Members that an object needs, beside `__call__`, if it is no subclass of `Reward`."""

T = TypeVar("T")


class GroupwiseError(ZoomIQAError, ValueError):
    """A reward that compares images within a group was used although each value must have a meaning alone."""


class Default(Generic[T]):
    """A member with a computed default: a subclass or an instance may simply assign its own value."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object, owner: type | None = None) -> T | Self:
        return self if instance is None else self.compute(instance)


class Reward(ABC):
    """Anything that scores images. Higher values are always better."""

    name: str
    score_range: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest value."""
    higher_is_better: bool = True
    """Always True: `__call__` negates a metric where lower is better."""
    differentiable: bool = False
    """Whether `__call__` takes `grad=True` and then keeps the graph to tensor images."""
    deterministic: bool = True
    """Whether the same images give the same values."""
    needs: frozenset[str] = frozenset()
    """Which of `lq`, `hr` and `prompts` must be given."""

    @Default
    def fingerprint(self) -> str:
        """Cache key: a digest of everything that the value depends on. Raises UnknownState if that cannot be read."""
        return state_digest(self)

    @Default
    def identity(self) -> dict[str, object]:
        """The options behind the fingerprint, so that a folder of another run can name the one that changed."""
        return {"name": self.name}

    @Default
    def parts(self) -> tuple["Reward", ...]:
        """The rewards that make up this one; by default those among its attributes."""
        return tuple(find_members(self, _is_reward))

    @Default
    def modules(self) -> tuple[nn.Module, ...]:
        """Networks of this object, without those of its parts; by default those among its attributes."""
        return tuple(_networks(self))

    @Default
    def groupwise(self) -> bool:
        """Whether a value has a meaning only within its group; by default, whether this holds for any part.

        Such a reward takes `groups=`, one hashable per image. Its values must not be cached or compared between calls.
        """
        return _has_groupwise_part(self, {id(self)})

    @Default
    def labels(self) -> frozenset[str]:
        """Names of the metrics that made its training labels; these must not judge it. Without those of its parts.

        By default those of a model among its attributes.
        """
        return frozenset(label_metrics(self))

    @abstractmethod
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Scores:  # fmt: skip
        """Return one score per image, in order."""


def fingerprint_of(reward: Reward) -> str:
    """Return a reward's fingerprint, also of an object that is no subclass of `Reward`. Raises UnknownState."""
    declared = getattr(reward, "fingerprint", None)
    return state_digest(reward) if declared is None else str(declared)


def parts_of(reward: object) -> tuple["Reward", ...]:
    """Return the parts of a reward, also of an object that is no subclass of `Reward`."""
    parts = getattr(reward, "parts", None)
    return tuple(find_members(reward, _is_reward)) if parts is None else tuple(parts)


def walk(reward: Reward) -> Iterator[Reward]:
    """Yield a reward and all of its parts, each object once, outermost first."""
    seen: set[int] = set()
    waiting = [reward]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += parts_of(current)


def is_groupwise(reward: object) -> bool:
    """Return whether a reward's values are relative to a group: by its member `groupwise`, else by its parts."""
    member = getattr_static(reward, "groupwise", None)
    if member is None or isinstance(member, Default):
        return _has_groupwise_part(reward, {id(reward)})
    return bool(getattr(reward, "groupwise", False))


def _has_groupwise_part(reward: object, seen: set[int]) -> bool:
    for inner in parts_of(reward):
        if id(inner) in seen:  # a reward may reach itself
            continue
        seen.add(id(inner))
        member = getattr_static(inner, "groupwise", None)
        is_declared = member is not None and not isinstance(member, Default)
        if is_groupwise(inner) if is_declared else _has_groupwise_part(inner, seen):
            return True
    return False


class NoReward(ZoomIQAError, ValueError):
    """An object that is used as a reward and is none, or does not keep to what a reward promises."""


def require_reward(candidate: object) -> None:
    """Raise NoReward for an object that is no reward, with the way out; `needs` and the orientation are looked at."""
    _require_promises(candidate)
    if missing := missing_members(candidate):
        raise NoReward(f"{_name(candidate)} is no reward: it lacks {', '.join(missing)}; {_way_out(candidate)}")


def _require_promises(candidate: Any) -> None:
    """As `require_reward`, but members that the caller does not use may be missing."""
    name = _name(candidate)
    if isinstance(candidate, type):
        raise NoReward(f"{name} is a class: pass an object of it, {name}(...)")
    if not callable(candidate):
        raise NoReward(f"{name} is no reward: it lacks __call__; {_way_out(candidate)}")
    accepted = signature(candidate).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in accepted.values())
    if not takes_all and (absent := sorted(NEEDS - accepted.keys())):
        raise NoReward(f"{name} is no reward: it lacks the arguments {', '.join(absent)}; {_way_out(candidate)}")
    if getattr(candidate, "higher_is_better", True) is False:
        raise NoReward(
            f"reward {name!r} says higher_is_better=False, but the values of a reward are always better the higher "
            "they are: return negated values, or wrap the metric with MetricReward(..., higher_is_better=False)"
        )
    needs: Any = getattr(candidate, "needs", frozenset())
    if not isinstance(needs, set | frozenset) or not needs <= NEEDS:
        raise NoReward(f"reward {name!r}: needs={needs!r} must be a set of {', '.join(sorted(NEEDS))}")


def _way_out(candidate: object) -> str:
    if hasattr(candidate, "rate"):
        return "make a reward of this model: ZoomIQAReward(model)"
    return "wrap a function of an image with MetricReward(fn, name, higher_is_better, score_range), or subclass Reward"


def _name(reward: object) -> str:
    name = getattr(reward, "name", None)
    return name if isinstance(name, str) else str(getattr(reward, "__name__", type(reward).__name__))


def require_pointwise(reward: Reward, why: str) -> None:
    """Raise GroupwiseError for a reward whose values have no meaning alone. why: how the caller uses a value.

    Raises NoReward for an object that is no reward.
    """
    require_reward(reward)
    if is_groupwise(reward):
        raise GroupwiseError(
            f"reward {reward.name!r} compares each image with its group, but {why}: give every Term "
            "normalise='raw', or use its terms one by one"
        )


def optimised_names(reward: Reward) -> frozenset[str]:
    """Return the names of all metrics that a reward optimises: its own, its parts', and those of their labels."""
    names: set[str] = set()
    for part in walk(reward):
        names |= {str(getattr(part, "name", "")).lower(), *labels_of(part)} - {""}
    return frozenset(names)


def labels_of(part: object) -> frozenset[str]:
    """Return the names, in lower case, of the metrics that one reward was trained on, without those of its parts."""
    declared = getattr(part, "labels", None)
    labels = label_metrics(part) if declared is None else declared
    return frozenset(str(name).lower() for name in labels)


def modules_of(reward: Reward) -> list[nn.Module]:
    """Return every network behind a reward, each once: its own and those of its parts."""
    modules: dict[int, nn.Module] = {}
    for part in walk(reward):
        declared = [part] if isinstance(part, nn.Module) else getattr(part, "modules", None)
        if declared is None or callable(declared):
            declared = _networks(part)
        modules |= {id(module): module for module in declared}
    return list(modules.values())


def find_part(reward: Reward, kind: type[T]) -> T | None:
    """Return the first of a reward and its parts that is a `kind`, or None."""
    return next((part for part in walk(reward) if isinstance(part, kind)), None)


@canonical
def ask(
    reward: Reward, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
    prompts: Sequence[str] | None = None, *,
    grad: bool = False, groups: Sequence[Hashable] | None = None,
) -> Scores:  # fmt: skip
    """Return `reward(images, ...)`; with `grad` its values are sure to have a graph, without it they have none.

    The one way for code that holds any reward. groups: one hashable per image, handed to a groupwise reward that
    takes it; others tell groups by lq and the prompts.
    Raises ValueError where a gradient is wanted of a reward that is not differentiable or that cuts the graph.
    """
    _require_promises(reward)
    options: dict[str, Any] = {}
    accepted = signature(reward.__call__).parameters
    if groups is not None and is_groupwise(reward) and "groups" in accepted:
        options["groups"] = groups
    if not grad:
        with torch.no_grad(), _unchanged(reward, images, lq, hr):
            scores = reward(images, lq=lq, hr=hr, prompts=prompts, **options)
        return _honest(reward, scores, len(split_images(images)))
    if not reward.differentiable:
        raise ValueError(f"grad=True: reward {reward.name!r} is not differentiable; leave it out or pass grad=False")
    if "grad" in accepted:
        options["grad"] = True
    with _unchanged(reward, images, lq, hr):
        scores = reward(images, lq=lq, hr=hr, prompts=prompts, **options)
    scores = _honest(reward, scores, len(split_images(images)))
    require_graph(reward.name, scores.value, scores.valid)
    return scores


def _honest(reward: Reward, scores: Any, count: int) -> Scores:
    """Return scores of the caller's own, in which NaN is not valid: a reward may write over its tensors at any time.

    Raises NoReward for anything but `Scores` with one value per image: a value must not go to another image.
    """
    if not isinstance(scores, Scores):
        raise NoReward(
            f"reward {_name(reward)!r} returned {type(scores).__name__}: return Scores(value=..., valid=..., std=...), "
            "or wrap a function of one image with MetricReward"
        )
    if len(scores) != count:
        raise NoReward(f"reward {_name(reward)!r} returned {len(scores)} values for {count} images: return one each")
    _tell_outside(reward, scores)
    return replace(scores, value=scores.value.clone(), valid=scores.valid.clone(), std=scores.std.clone())


RANGE_SLACK = 1e-3
"""Of the range, or of its only end: what rounding may add to a value."""
_TOLD: set[tuple[str, tuple[float, float]]] = set()
"""Names and ranges of the rewards that a warning was given about, so that a long run has one each."""


def outside_range(reward: Reward, values: Sequence[float]) -> str | None:
    """Return what is wrong where a value lies outside the reward's `score_range`, else None; NaN is no value."""
    low, high = getattr(reward, "score_range", (-math.inf, math.inf))
    finite_ends = [abs(end) for end in (low, high) if math.isfinite(end)]
    slack = RANGE_SLACK * (high - low if len(finite_ends) == 2 else max(1.0, *finite_ends, 0.0))
    worst = next((value for value in values if value < low - slack or value > high + slack), None)
    if worst is None:
        return None
    return (
        f"reward {_name(reward)!r} gave {worst:.4g}, outside its score_range ({low:g}, {high:g}); thresholds that "
        "follow from the range are then wrong: declare the range that its values have"
    )


def _tell_outside(reward: Reward, scores: Scores) -> None:
    key = (_name(reward), tuple(getattr(reward, "score_range", ())))
    if key not in _TOLD and (wrong := outside_range(reward, scores.value.detach()[scores.valid].tolist())):
        _TOLD.add(key)
        warnings.warn(wrong, stacklevel=4)


@contextmanager
def _unchanged(reward: Reward, *given: ImageSources | None) -> Iterator[None]:
    """Raise NoReward at the end if the tensors that were given have been changed in place.

    What is asked next would get other images, and the caller keeps them.
    """
    tensors = [item for source in given if source is not None for item in _tensors(source)]
    before = [tensor._version for tensor in tensors]
    yield
    if [tensor._version for tensor in tensors] != before:
        raise NoReward(
            f"reward {_name(reward)!r} changes the images that it is given: work on a copy, image.clone(), and use no "
            "operation in place on them (x += 1, x.clamp_())"
        )


def _tensors(source: ImageSources) -> list[Tensor]:
    sources = [source] if isinstance(source, Tensor) else source if isinstance(source, list | tuple) else []
    return [item for item in sources if isinstance(item, Tensor) and not item.is_inference()]


def missing_members(candidate: object) -> list[str]:
    """Return which members an object lacks to be used as a reward; nothing for a reward."""
    # A property that raises is there: asking it says what is wrong.
    lacks = [
        member for member in REQUIRED
        if not hasattr(candidate, member) and not hasattr(type(candidate), member)
    ]  # fmt: skip
    return lacks if callable(candidate) else [*lacks, "__call__"]


def is_model(candidate: object) -> bool:
    """Return whether an object is a model that rates, and no reward, which may have a `rate` of its own."""
    return hasattr(candidate, "rate") and bool(missing_members(candidate))


def _networks(owner: object) -> Iterator[nn.Module]:
    """Yield the networks among an object's attributes, those of quality models included."""
    for value in find_members(owner, lambda value: isinstance(value, nn.Module) or hasattr(value, "checkpoint")):
        network = value if isinstance(value, nn.Module) else getattr(value.checkpoint, "model", None)
        if isinstance(network, nn.Module):
            yield network


def label_metrics(owner: object) -> Iterator[str]:
    """Yield the names of the metrics that made the labels of the models among an object's attributes."""
    for model in find_members(owner, lambda value: hasattr(getattr(value, "protocol", None), "label_metrics")):
        yield from model.protocol.label_metrics


def _is_reward(value: Any) -> bool:
    return not isinstance(value, type | nn.Module | Tensor) and not missing_members(value)


def needed_inputs(reward: Reward, count: int, **given: Any) -> dict[str, list[Any]]:
    """Return what the reward `needs` of lq, hr and prompts, one item per image.

    Raises ValueError for an input that is missing, and for one that is not as long as the images.
    """
    needed = {}
    for key in sorted(reward.needs):
        if given[key] is None:
            raise ValueError(f"reward {reward.name!r} needs {key}=: pass one per image")
        needed[key] = split_images(given[key])  # a list of texts is split as well
        if len(needed[key]) != count:
            raise ValueError(
                f"reward {reward.name!r}: {key} holds {len(needed[key])} for {count} images: pass one per image"
            )
    return needed
