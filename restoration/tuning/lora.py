"""What is trained of a denoiser: its LoRA, and the moving average of these weights.

The policy is the network with its adapters on, the reference is the same network with its adapters off. So no second
copy of the base is needed. DiffusionNFT's `old` policy is a second adapter. Files are those of diffusers
(`pytorch_lora_weights.safetensors`, names that begin with that of the part, peft's configuration in the header).
`pipe.load_lora_weights` reads them if the pipeline has it; otherwise `load_lora` does.

The moving average is what is monitored and saved, because single updates are noisy.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restoration.tuning.denoisers.base import Denoiser
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.shared_state import exclusive
from zoomiqa_reward.runs.outputs import part_folder, replacing

FILE = "pytorch_lora_weights.safetensors"
POLICY, OLD = "default", "old"


def add_lora(
    denoiser: Denoiser, rank: int, alpha: int, adapters: Sequence[str] = (POLICY,), seed: int = 0,
    targets: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Put equal adapters of these names on the denoiser; the first is active and trained.

    targets: endings of the names of the layers that get them; None: the denoiser's own choice. An adapter starts as no
    change at all: its second matrix is zero. Its weights are float32 whatever the network is in: an update is often
    smaller than the steps of bfloat16. Raises ValueError where a given ending, or all of the denoiser's own, fit no
    layer, or where adapters are already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    module, layers = denoiser.module, layers_to_tune(denoiser, targets)
    with own_draws(seed):
        for name in adapters:
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, init_lora_weights="gaussian")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant
                if (add := getattr(module, "add_adapter", None)) is not None:
                    add(config, adapter_name=name)
                else:
                    inject_adapter_in_model(config, module, adapter_name=name)
            for parameter in weights_of(module, name).values():
                parameter.data = parameter.data.float()
    for name in adapters[1:]:
        copy_adapter(module, adapters[0], name)
    _activate(module, [adapters[0]])


def layers_to_tune(denoiser: Denoiser, targets: Sequence[str] | None) -> list[str]:
    """Return the names of the layers that `add_lora` would put adapters on. Raises ValueError as it says."""
    module, name = denoiser.module, denoiser.module_name
    if tuners(module):
        raise ValueError(f"{name} has adapters already: fuse or unload them before tuning")
    if hasattr(module, "_orig_mod"):
        raise ValueError(
            f"{name} is compiled, and adapters change its code: tune pipe.{name}._orig_mod, compile the result"
        )
    if any(getattr(layer, "fused_projections", False) for layer in module.modules()):
        raise ValueError(
            f"{name} computes with fused projections, which no adapter on to_q, to_k or to_v reaches: call "
            f"pipe.{name}.unfuse_qkv_projections() before tuning"
        )
    endings = denoiser.lora_targets if targets is None else targets
    layers = _layers(module, endings)
    # The denoiser's own choice may name layers that only some of its networks have.
    unused = [ending for ending in targets or () if not _layers(module, [ending])]
    if unused or not layers:
        raise ValueError(
            f"{type(module).__name__} has no layer whose name ends with {', '.join(unused or endings)}: give endings "
            "of names of linear layers or convolutions, or leave lora_targets at None"
        )
    return layers


def tuners(module: nn.Module) -> list[Any]:
    """Return the layers that carry adapters."""
    return [layer for layer in module.modules() if hasattr(layer, "lora_A") and hasattr(layer, "set_adapter")]


def weights_of(module: nn.Module, adapter: str = POLICY) -> dict[str, nn.Parameter]:
    """Return an adapter's parameters by name, in a fixed order."""
    ending = (f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight")
    return {name: parameter for name, parameter in sorted(module.named_parameters()) if name.endswith(ending)}


@contextmanager
def reference(module: nn.Module) -> Iterator[None]:
    """The base network: all adapters off inside, and as they were afterwards. The module is this thread's alone."""
    with exclusive(module):
        kept = [(layer, layer.disable_adapters) for layer in tuners(module)]
        flags = _gradients(module)
        try:
            for layer, _ in kept:
                layer.enable_adapters(False)
            yield
        finally:
            for layer, was_off in kept:
                layer.enable_adapters(not was_off)
            _restore(flags)


@contextmanager
def use_adapter(module: nn.Module, name: str) -> Iterator[None]:
    """That adapter instead of the active one inside; the module is this thread's alone. Raises ValueError for an
    unknown name.
    """
    layers = tuners(module)
    if not layers or name not in layers[0].lora_A:
        raise ValueError(f"adapter {name!r}: there are {', '.join(layers[0].lora_A) if layers else 'none'}")
    with exclusive(module):
        before, flags = list(layers[0].active_adapters), _gradients(module)
        try:
            _activate(module, [name])
            yield
        finally:
            _activate(module, before)
            _restore(flags)


@torch.no_grad()
def copy_adapter(module: nn.Module, source: str, to: str, keep: float = 0.0) -> None:
    """Set an adapter to keep * itself + (1 - keep) * source."""
    pairs = zip(weights_of(module, to).values(), weights_of(module, source).values(), strict=True)
    for old, new in pairs:
        old.lerp_(new, 1 - keep)


class AdapterState:
    """An adapter's weights as a part of a run's state."""

    def __init__(self, module: nn.Module, adapter: str) -> None:
        self.module, self.adapter = module, adapter

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights, on the CPU."""
        return {
            name: parameter.detach().cpu().clone() for name, parameter in weights_of(self.module, self.adapter).items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the weights. Raises ValueError where the state belongs to another LoRA."""
        parameters = weights_of(self.module, self.adapter)
        if parameters.keys() != state.keys() or any(
            parameters[name].shape != tensor.shape for name, tensor in state.items()
        ):
            raise ValueError("the saved LoRA has other layers or another rank: use the run's own settings")
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def save_lora(denoiser: Denoiser, folder: Path, adapter: str = POLICY) -> Path:
    """Write the adapter for `load_lora_weights` and `load_lora`; return the file."""
    from safetensors.torch import save_file

    part_folder(folder)
    network: Any = denoiser.module  # peft has set its config
    prefix, config = denoiser.module_name, network.peft_config[adapter]
    tensors = {
        f"{prefix}.{name.replace(f'.{adapter}.weight', '.weight')}": parameter.detach().cpu().contiguous()
        for name, parameter in weights_of(denoiser.module, adapter).items()
    }
    # One header entry, sorted, of what decides the numbers: then the file is the same for the same weights.
    facts = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    header = {"lora_adapter_metadata": json.dumps({f"{prefix}.{k}": v for k, v in facts.items()})}
    with replacing(folder / FILE) as half:
        save_file(tensors, half, metadata=header)
    return folder / FILE


def load_lora(denoiser: Denoiser, folder: Path) -> None:
    """Put the adapter in `folder` on a denoiser without any; gives what `save_lora` wrote."""
    from safetensors import safe_open

    with safe_open(folder / FILE, framework="pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
    prefix = denoiser.module_name
    facts = {name.removeprefix(f"{prefix}."): value for name, value in header.items()}
    add_lora(denoiser, int(facts["r"]), int(facts["lora_alpha"]), targets=facts["target_modules"])
    AdapterState(denoiser.module, POLICY).load_state_dict({
        name.removeprefix(f"{prefix}.").removesuffix(".weight") + f".{POLICY}.weight": tensor
        for name, tensor in tensors.items()
    })  # fmt: skip


def merge_adapter(module: nn.Module, adapter: str = POLICY) -> nn.Module:
    """Return a copy of the network with the adapter added to its weights, and no adapters left.

    The copy is float32 whatever the network is in: most of an adapter would be rounded away in bfloat16.
    """
    whole: Any = copy.deepcopy(module).float()  # with the attributes that diffusers and peft set
    for name, layer in list(whole.named_modules()):
        if not hasattr(layer, "lora_A") or not hasattr(layer, "merge"):
            continue
        layer.merge(adapter_names=[adapter])
        parent, _, child = name.rpartition(".")
        setattr(whole.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(whole, "peft_config"):
        del whole.peft_config
    if getattr(whole, "_hf_peft_config_loaded", False):
        whole._hf_peft_config_loaded = False
    return whole


def _layers(module: nn.Module, endings: Sequence[str]) -> list[str]:
    kinds = (nn.Linear, nn.Conv2d)
    names = [name for name, layer in module.named_modules() if isinstance(layer, kinds) and name]
    return [name for name in names if not endings or any(name == e or name.endswith(f".{e}") for e in endings)]


def _activate(module: nn.Module, names: list[str]) -> None:
    for layer in tuners(module):
        layer.set_adapter(names)


def _gradients(module: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    return [(parameter, parameter.requires_grad) for parameter in module.parameters()]


def _restore(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, had in flags:
        parameter.requires_grad_(had)


class EMA:
    """Average of parameters over updates."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start at the parameters' present values.

        decay: of one update; the first ones use (1 + n) / (10 + n) where that is less, so that the start is soon
        forgotten. 0 follows exactly. Raises ValueError outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be at least 0 and below 1")
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.averages = [part.detach().clone() for part in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Mix in the present values."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, part in zip(self.averages, self.parameters, strict=True):
            average.lerp_(part.detach().to(average.device), 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages instead of the values inside."""
        held = [part.detach().clone() for part in self.parameters]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(held)

    def state_dict(self) -> dict[str, list[Tensor] | int]:
        """Return averages and count."""
        return {"averages": [part.cpu().clone() for part in self.averages], "updates": self.updates}

    def load_state_dict(self, state: dict[str, list[Tensor] | int]) -> None:
        """Restore what `state_dict` returned."""
        for average, part in zip(self.averages, state["averages"], strict=True):  # type: ignore[arg-type]
            average.copy_(part)
        self.updates = int(state["updates"])  # type: ignore[arg-type]

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for part, value in zip(self.parameters, values, strict=True):
            part.copy_(value)
