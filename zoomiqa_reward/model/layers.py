"""Parts of a transformer layer, in few operators: the library's modules and weights, its results to the last bits.

A layer that transformers would recompute in `backward` is recomputed here as well (`gradients`). Where a part is not
the plain module that is known here, as under quantisation or LoRA, the module itself is called.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoomiqa_reward.model.parts import Affine, Layer, Mlp, Norm, PatchEmbed, TowerMlp
from zoomiqa_reward.model.products import affine, suits


def recomputable(layer: Layer, run: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Return `run(hidden)`, recomputed in `backward` where the layer says so."""
    if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
        return layer._gradient_checkpointing_func(run, hidden)
    return run(hidden)


def rms(norm: Norm, x: Tensor) -> Tensor:
    """Return the root mean square norm of the last axis, in one operator.

    In half precision it rounds once, where the library rounds before the product with the weight and again after it.
    """
    epsilon = getattr(norm, "variance_epsilon", None)
    if epsilon is None or is_hooked(norm):
        return norm(x)
    return nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, epsilon)


def gated(mlp: Mlp | TowerMlp, x: Tensor) -> Tensor:
    """Return the gated feed-forward part."""
    if is_hooked(mlp) or not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return mlp(x)
    return linear(mlp.down_proj)(mlp.act_fn(linear(mlp.gate_proj)(x)) * linear(mlp.up_proj)(x))


def linear(module: nn.Module | Affine) -> Callable[[Tensor], Tensor]:
    """Return what the module computes, without the module's own calls where it is a plain linear layer."""
    if type(module) is not nn.Linear or is_hooked(module):
        return module
    weight, bias = module.weight, module.bias
    return lambda x: affine(x, weight, bias)


def add_linear(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `x + module(y)` of [rows, width], in one operator where the module is a plain linear layer, no bias."""
    if type(module) is not nn.Linear or module.bias is not None or is_hooked(module):
        return lambda x, y: x + module(y)
    weight, turned = module.weight, module.weight.t()
    return lambda x, y: x + affine(y, weight) if suits(y, weight) else torch.addmm(x, y, turned)


def side_by_side(modules: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Return the modules' results of one input beside each other, in one operator where all are plain linear layers.

    That copies their weights, for as long as what is returned is kept.
    """
    alike = len({module.bias is None for module in modules if hasattr(module, "bias")}) == 1
    plain = [module for module in modules if type(module) is nn.Linear and not is_hooked(module)]
    if not alike or len(plain) < len(modules):
        return lambda x: torch.cat([module(x) for module in modules], dim=-1)
    weight = torch.cat([module.weight for module in plain])
    bias = None if plain[0].bias is None else torch.cat([module.bias for module in plain])
    return lambda x: affine(x, weight, bias)


def is_hooked(module: nn.Module | Norm | PatchEmbed | Mlp | TowerMlp) -> bool:
    """Return whether calling a module does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
