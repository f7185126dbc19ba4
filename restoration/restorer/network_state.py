"""What networks and pipelines depend on beside their weights and configuration: code, options, hooks.

A folder of candidates goes on only with the same restorer. Two networks of equal weights may differ in an activation
or a number; diffusers switches FreeU, tiling and attention processors on objects that are loaded already.
"""

from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from PIL import Image
from torch import nn

from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.rewards.code_reach import is_installed
from zoomiqa_reward.rewards.identity import attributes_of, state_digest
from zoomiqa_reward.rewards.module_state import HOOKS, states_of
from zoomiqa_reward.runs.digest import digest

_SIMPLE = (bool, int, float, str, bytes, torch.dtype, FunctionType, BuiltinFunctionType)
_SWITCHES = ("s1", "s2", "b1", "b2", "use_tiling", "use_framewise_encoding", "use_framewise_decoding")
"""FreeU's factors and the autoencoders' tiles: absent, None or False until they are switched on."""
_LEVELS = ("alphas_cumprod", "shift")
"""Noise levels that a scheduler computes once, or is told by `set_shift`."""
_PLAIN_PROCESSORS = ("AttnProcessor2_0",)
"""What attention computes with when it is loaded."""
_MOVERS = ("_hf_hook", "_diffusers_hook", "_orig_mod")
"""Beside one of these `forward` was replaced by what moves weights, or compiles: the values stay the same."""


def network_state(module: nn.Module) -> str:
    """Return 16 hex digits of the code, options and hooks of a network and its children.

    Not of the training mode. An option that cannot be read counts by its class. Of installed classes only plain public
    options count; the others are fixed by the package's version or are caches.
    """
    return digest(*(f"{name}|{child.extra_repr()}|{_of_network(child)}\n" for name, child in module.named_modules()))


def _of_network(module: nn.Module) -> str:
    installed = is_installed(type(module).__module__)
    held = [
        f"{key}={described(value)}"
        for key, value, _ in states_of(module, is_installed=installed)
        if key in HOOKS or not installed or (not key.startswith("_") and _is_simple(value))
        if key != "forward" or not _is_moved(module)
    ]
    return "|".join([described(type(module)), *held])


def switches_of(component: object) -> dict[str, str]:
    """Return what was put on a loaded component of a pipeline, by name; nothing where it is as it was loaded."""
    if not isinstance(component, nn.Module):
        return dict(_edited_levels(component))
    return {f"{name}.{key}": value for name, child in component.named_modules() for key, value in _put_on(child)}


def _edited_levels(component: Any) -> Iterator[tuple[str, str]]:
    """Yield the noise levels of a scheduler that are not those of its configuration."""
    held = {key: value for key in _LEVELS if (value := getattr(component, key, None)) is not None}
    if held and hasattr(component, "set_timesteps"):
        plain = type(component).from_config(component.config)
        for key, value in held.items():
            if described(value) != described(getattr(plain, key)):
                yield key, described(value)


def _put_on(module: nn.Module) -> Iterator[tuple[str, str]]:
    state = vars(module)
    for key in HOOKS:
        if state[key]:
            yield key, described(list(state[key].values()))
    if "forward" in state and not _is_moved(module):
        yield "forward", described(state["forward"])
    on = [key for key in _SWITCHES if state.get(key)]
    sizes = [key for key in state if key.startswith("tile_")] if "use_tiling" in on else []
    yield from ((key, repr(state[key])) for key in sorted([*on, *sizes]))
    processor = getattr(module, "processor", None)
    if processor is not None and type(processor).__name__ not in _PLAIN_PROCESSORS:
        yield "processor", described(processor)


def described(value: object) -> str:
    """Return a digest of a value's state; of what cannot be read whole, that of its class and its plain attributes."""
    try:
        return state_digest(load_image(value) if isinstance(value, Image.Image) else value)
    except UnknownState:
        pass
    if isinstance(value, list | tuple):
        return digest(*(f"{described(item)}\n" for item in value))
    if isinstance(value, dict):
        return digest(*(f"{key}={described(item)}\n" for key, item in value.items()))
    kind = value if isinstance(value, type | FunctionType) else type(value)
    plain = [] if kind is value else sorted(
        f"{key}={described(item)}" for key, item in attributes_of(value).items() if _is_simple(item)
    )  # fmt: skip
    return digest("|".join([f"{kind.__module__}.{kind.__qualname__}", *plain]))


def _is_simple(value: object) -> bool:
    return isinstance(value, _SIMPLE) or (isinstance(value, list | tuple) and all(map(_is_simple, value)))


def _is_moved(module: nn.Module) -> bool:
    return any(key in vars(module) or key in module._modules for key in _MOVERS)


def option_values(options: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of a call as JSON values; what JSON does not hold, such as an image, by its digest."""
    return {key: value if _is_json(value) else described(value) for key, value in options.items()}


def _is_json(value: object) -> bool:
    return value is None or type(value) in (bool, int, float, str) or (
        type(value) in (list, tuple) and all(map(_is_json, value))  # type: ignore[call-overload]
    )  # fmt: skip
