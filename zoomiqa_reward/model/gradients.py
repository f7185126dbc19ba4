"""Gradients from a rating to the pixels: what must hold while the graph is built, and errors instead of a cut graph.

Training on a cut graph would learn nothing, without an error. So asking for a gradient gives a gradient or raises:
images must be tensors that require it, gradients must be switched on, and the values of a reward that is declared
differentiable must have a graph.

While the graph is built the model's parameters are frozen: the gradient is the images' alone. With
`gradient_checkpointing` the activations inside the transformer layers are thrown away and recomputed in `backward`.
Transformers does this only for a layer in training mode, and training mode also switches dropout on. So only the
layers themselves are set to training mode, not the modules inside them, and a layer in training mode must have no
dropout.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoomiqa_reward.images.loading import describe
from zoomiqa_reward.model.numerics import canonical_numerics
from zoomiqa_reward.model.repeatable import repeatable_gradients
from zoomiqa_reward.model.shared_state import Undo, exclusive, shared_change

_FLAGS = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")


@contextmanager
def graph_to_pixels(
    model: nn.Module, *, gradient_checkpointing: bool = False, repeatable: bool = False
) -> Iterator[None]:
    """Keep the model's parameters out of the graph that is built inside, and recompute activations if asked to.

    repeatable: the gradient has the same bits every time (`model.repeatable`).
    Everything is as it was afterwards: each parameter's `requires_grad`, each layer's mode, also where several threads
    do this with one model. `backward` may run after that; what it recomputes is computed with frozen parameters again.
    Raises ValueError where dropout would act, or where checkpointing is asked of a model that has no layers for it.
    """
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(repeatable_gradients(repeatable))
        if gradient_checkpointing:
            stack.enter_context(_recomputing(model, repeatable))
        with exclusive(model):  # else another thread's layers may look as if they trained
            refuse_dropout(model)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch `requires_grad` of all parameters off inside, and back on for those that had it; safe in threads."""

    def make() -> Undo:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)

        def undo() -> None:
            for parameter in trained:
                parameter.requires_grad_(True)

        return undo

    with shared_change(model, "requires_grad", make):
        yield


@contextmanager
def _recomputing(model: nn.Module, repeatable: bool) -> Iterator[None]:
    """Recompute in the graph that is built inside. The model is this thread's alone: layers that recompute forget the
    cache of an answer that another thread writes.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient_checkpointing=True: {type(model).__name__} has no layer that transformers can recompute; "
            "leave it out and rate smaller images or fewer at a time"
        )
    # Nothing random is recomputed, so the generators' states need not be kept and set again.
    contexts = partial(_contexts, model, repeatable)
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def make() -> Undo:
        before = [{name: vars(layer)[name] for name in _FLAGS if name in vars(layer)} for layer in layers]
        for layer in layers:
            layer.training = True  # not layer.train(), which would switch its parts as well
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = recompute

        def undo() -> None:
            for layer, flags in zip(layers, before, strict=True):
                for name in _FLAGS:
                    vars(layer).pop(name, None)
                vars(layer).update(flags)

        return undo

    with exclusive(model), shared_change(model, "recomputing", make):
        yield


def _contexts(model: nn.Module, repeatable: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a layer's first computation and of its repetition in `backward`.

    By then the caller may have unfrozen the model, or switched something on that changes the numbers.
    """
    return nullcontext(), _recomputation(model, repeatable)


@contextmanager
def _recomputation(model: nn.Module, repeatable: bool) -> Iterator[None]:
    with frozen(model), canonical_numerics(), repeatable_gradients(repeatable):
        yield


def refuse_dropout(model: nn.Module) -> None:
    """Raise ValueError if a part in training mode drops anything, or normalises over a batch.

    What the model says would be random, or follow from the other images of a batch.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name or 'the model'} is in training mode: it normalises over the batch, so a value follows from the "
                "other images too; call model.eval() first"
            )
        rates = {key: value for key, value in vars(module).items() if "drop" in key}
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates["p"] = module.p
        for key, rate in rates.items():
            if isinstance(rate, int | float) and rate > 0:
                raise ValueError(
                    f"{name or 'the model'} is in training mode with {key}={rate}: what it says with "
                    "dropout is random; call model.eval() first"
                )


def require_gradient(sources: Sequence[object]) -> None:
    """Raise ValueError unless a gradient can reach every one of these images (a batch's items, not yet loaded)."""
    if not torch.is_grad_enabled():
        raise ValueError("grad=True inside torch.no_grad(): no graph can be built; leave no_grad or pass grad=False")
    for index, source in enumerate(sources):
        if not isinstance(source, Tensor):
            raise ValueError(f"grad=True: {describe(source, index)} is no tensor, so no gradient can reach it")
        if not source.requires_grad:
            raise ValueError(
                f"grad=True: {describe(source, index)} does not require a gradient; call .requires_grad_(True) on it, "
                "or compute it from something that does"
            )


def require_graph(name: str, value: Tensor, valid: Tensor) -> None:
    """Raise ValueError if a measured value came back without a graph: `name` calls itself differentiable and is not."""
    if bool(valid.any()) and not value.requires_grad:
        raise ValueError(
            f"reward {name!r} cut the graph: its value has no gradient, though it says differentiable=True; "
            "compute in tensors without .detach(), .item() or numpy"
        )
