"""Engines of what runs once per candidate: a network (a GAN, a one-step model), and any Python callable."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from restoration.restorer.image_io import (
    RestorationError,
    check_range,
    leaves_unit,
    pad_to_multiple,
    probe_image,
    single_image,
)
from restoration.restorer.network_state import network_state
from restoration.restorer.pipeline_engine import failures_named
from restoration.restorer.rng import isolated
from restoration.restorer.tiling import whole_scale
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.shared_state import Undo, shared_change
from zoomiqa_reward.rewards.identity import state_digest
from zoomiqa_reward.runs.weights_digest import WeightsDigests


class ModuleEngine:
    """A network that runs once, BCHW to BCHW in [0, 1]; or a spandrel descriptor of one."""

    batches = False
    agreement_px = None
    prompts: frozenset[str] = frozenset()

    def __init__(
        self, source: Any, name: str, scale: int | None, multiple_px: int, deterministic: bool | None,
        value_range: str = "unit",
    ) -> None:  # fmt: skip
        """deterministic=None: yes, and a draw from a global generator is then refused.

        value_range: what the network writes, of `VALUE_RANGES`; held against its answer to black and white, once.
        """
        self.value_range, self._is_range_known = value_range, False
        self.source, self.name, self.multiple_px = source, name, multiple_px
        self.module: nn.Module = source if isinstance(source, nn.Module) else source.model
        declared = getattr(source, "scale", None)
        self.scale = scale if scale is not None else declared if isinstance(declared, int) else None
        self.deterministic = deterministic is not False
        self._digests = WeightsDigests()

    def __call__(self, image: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> list[Tensor]:
        """See `Engine`. Run in eval mode, whatever mode the module is in; that mode is put back."""
        outputs = []
        home = next(self.module.parameters(), torch.zeros(0))
        padded = pad_to_multiple(image, self.multiple_px)
        for _ in seeds:
            with failures_named(self.name), evaluating(self.module), torch.no_grad():
                if not self._is_range_known:
                    with isolated(0), own_draws(0):  # what the probe draws must not change what its images draw
                        probe = self.source(probe_image(padded)[None].to(home.device, home.dtype))
                    check_range(probe, self.name, self.value_range)
                    self._is_range_known = True
                output = self.source(padded[None].to(home.device, home.dtype))
            restored = single_image(output, self.name, self.value_range)
            with failures_named(self.name):
                self.scale = _agreed(self, whole_scale(padded, restored))
            outputs.append(restored[:, : image.shape[1] * self.scale, : image.shape[2] * self.scale].contiguous())
        return outputs

    def parts(self) -> dict[str, Any]:
        """See `Engine`."""
        weights = self._digests.of(self.module)
        code = network_state(self.module)
        return {"class": type(self.module).__name__, "code": code, "weights": weights, "multiple_px": self.multiple_px,
                "value_range": self.value_range}  # fmt: skip


class CallableEngine:
    """Any function of a CHW image in [0, 1], and of the seed if it has room for one."""

    batches = False
    agreement_px = None

    def __init__(
        self, fn: Callable[..., Any], name: str, scale: int | None, deterministic: bool | None, fingerprint: str | None,
        value_range: str = "unit",
    ) -> None:  # fmt: skip
        """fingerprint: stands for the function where its source does not say all, such as weights that it reads.

        value_range: what a float tensor that it returns holds; asked once, when the first one leaves [0, 1].
        """
        self.value_range, self._is_range_known = value_range, False
        self.fn, self.name, self.scale, self._fingerprint = fn, name, scale, fingerprint
        accepted = _parameters(fn)
        self.prompts = frozenset({"prompt", "negative_prompt"} & set(accepted))
        places = [
            key
            for key, parameter in accepted.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        second = [key for key in places[1:2] if accepted[key].default is inspect.Parameter.empty]
        self._seed_key = "seed" if "seed" in accepted else next(iter(set(second) - self.prompts), None)
        self._seed_in_place = self._seed_key is not None and self._seed_key in places[1:2]
        self.deterministic = self._seed_key is None if deterministic is None else deterministic

    def __call__(self, image: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> list[Tensor]:
        """See `Engine`. The function gets a copy of the image: it may write on it."""
        outputs = []
        for seed in seeds:
            texts_and_seed: dict[str, Any] = dict(texts)
            arguments = [seed] if self._seed_in_place else []
            if self._seed_key is not None and not arguments:
                texts_and_seed[self._seed_key] = seed
            with failures_named(self.name), torch.no_grad():
                output = self.fn(image.clone(), *arguments, **texts_and_seed)
                if not self._is_range_known and leaves_unit(output, self.value_range):
                    with isolated(0), own_draws(0):
                        probe = self.fn(probe_image(image), *arguments, **texts_and_seed)
                    check_range(probe, self.name, self.value_range)
                    self._is_range_known = True
            restored = single_image(output, self.name, self.value_range)
            with failures_named(self.name):
                self.scale = _agreed(self, whole_scale(image, restored))
            outputs.append(restored)
        return outputs

    def parts(self) -> dict[str, Any]:
        """See `Engine`."""
        fingerprint = state_digest(self.fn) if self._fingerprint is None else self._fingerprint
        return {"fn": fingerprint, "value_range": self.value_range}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and each of its parts back into its own mode afterwards; safe in threads."""

    def make() -> Undo:
        modes = [(submodule, submodule.training) for submodule in module.modules()]
        module.eval()

        def undo() -> None:
            for submodule, training in modes:
                submodule.training = training

        return undo

    with shared_change(module, "evaluating", make):
        yield


def _agreed(engine: Any, measured: int) -> int:
    if engine.scale not in (None, measured):
        raise RestorationError(f"{engine.name} enlarged {measured} times where scale={engine.scale} was given or seen")
    return measured


def _parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # built in, without a signature: a function of the image
        return {}
