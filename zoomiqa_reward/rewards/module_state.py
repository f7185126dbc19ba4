"""What a network's values depend on beside its weights: attributes, hooks, compiled code."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NOISE = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_is_hf_initialized", "_old_forward", "_hf_hook"}
"""What every network has; weights and the training mode are read by themselves."""


def states_of(module: nn.Module, *, is_installed: bool) -> Iterator[tuple[str, Any, bool]]:
    """Yield (name, value, whether it must be readable) of one network's state, without its weights and children.

    is_installed: its class belongs to an installed package. Its attributes are then read where they can be: what
    cannot be, such as a cache, is fixed by the package's version.
    """
    for name, value in sorted(vars(module).items()):
        if name not in _NOISE:
            yield name, value, not is_installed
    for name in HOOKS:
        yield name, list(getattr(module, name).values()), True
    if isinstance(module, torch.jit.ScriptModule):
        yield "inlined_graph", _script(module), True
    elif hasattr(module, "graph") and isinstance(getattr(module, "code", None), str):  # torch.fx
        yield "code", module.code, True


def _script(module: torch.jit.ScriptModule) -> str:
    try:
        return str(module.inlined_graph)
    except (AttributeError, RuntimeError):  # a part without a forward of its own
        return ""
