"""Canonical numerics: what a caller has switched on around a measurement must not change its bits.

| state | belongs to | inside `canonical_numerics` |
|---|---|---|
| autocast, on each kind of device | the thread | off |
| default device (`torch.set_default_device`, `with torch.device(...)`) | the thread | the CPU |
| flushing of denormal numbers | the thread | off |
| default dtype | the process | left alone; tensors made here are float32, by a mode of this thread |
| float32 precision (TF32), cuDNN, oneDNN, attention kernels, deterministic algorithms | the process | `SETTINGS` |

Settings of the process are switched by the first thread that enters and put back by the last that leaves; other
threads compute with the canonical ones meanwhile. If one of them changes a setting or the default dtype while a value
is being computed, the value has no known settings, and an error is raised. Gradients are computed in `backward`,
outside, with the settings that hold there: call it outside autocast, as PyTorch recommends. The operations that it
goes back through are those of the inside.
Not covered: the number of threads and the kind of GPU, which choose between kernels.
Source: PyTorch's notes "Numerical accuracy", "CUDA semantics" (TF32) and "Reproducibility".
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoomiqa_reward.model.shared_state import Undo, shared_change

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda", "mps", "xpu")
FULL = ("none", "ieee")
"""Names of a float32 precision that rounds nothing; "none" follows the setting above it, and the last one is full."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the process."""

    name: str
    """In torch."""
    canonical: Any
    """What it is inside."""
    read: Callable[[], Any]
    write: Callable[[Any], object]

    def holds(self) -> bool:
        """Return whether it is canonical already. A mix of old and new names, which torch refuses to read, holds."""
        return self.is_canonical(self.now())

    def is_canonical(self, value: Any) -> bool:
        """Return whether a value of it, None where torch cannot tell it, counts as canonical."""
        return value is None or value == self.canonical or (self.canonical in FULL and value in FULL)

    def now(self) -> Any:
        """Return the value; None where torch cannot tell it."""
        try:
            return self.read()
        except RuntimeError:
            return None


def _attribute(name: str, canonical: Any) -> Setting | None:
    """Return the setting of an attribute of `torch.backends`; None where this torch has no such thing."""
    path, _, last = name.rpartition(".")
    try:
        owner = attrgetter(path)(torch.backends) if path else torch.backends
        getattr(owner, last)
    except AttributeError:
        return None
    except RuntimeError:  # there, but of mixed names
        pass
    return Setting(name=f"torch.backends.{name}", canonical=canonical, read=functools.partial(getattr, owner, last),
                   write=functools.partial(setattr, owner, last))  # fmt: skip


def _settings() -> tuple[Setting, ...]:
    cuda = torch.backends.cuda
    pairs = [
        (torch.backends.cuda.flash_sdp_enabled, cuda.enable_flash_sdp, "enable_flash_sdp", True),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, "enable_mem_efficient_sdp", True),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp, "enable_math_sdp", True),
        (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, "enable_cudnn_sdp", True),
        (cuda.fp16_bf16_reduction_math_sdp_allowed, cuda.allow_fp16_bf16_reduction_math_sdp,
         "allow_fp16_bf16_reduction_math_sdp", False),
    ]  # fmt: skip
    settings = [
        Setting(name="torch.set_float32_matmul_precision", canonical="highest",
                read=torch.get_float32_matmul_precision, write=torch.set_float32_matmul_precision),
        Setting(name="torch.use_deterministic_algorithms", canonical=(False, False), read=_deterministic,
                write=lambda pair: torch.use_deterministic_algorithms(pair[0], warn_only=pair[1])),
        Setting(name="torch.backends.mkldnn.flags", canonical=True, read=torch._C._get_mkldnn_enabled,
                write=torch._C._set_mkldnn_enabled),
        *(Setting(name=f"torch.backends.cuda.{name}", canonical=value, read=read, write=write)
          for read, write, name, value in pairs),
    ]  # fmt: skip
    # From the general to the particular: a particular one may only follow the one above it.
    attributes = [
        ("fp32_precision", "none"), ("cuda.matmul.fp32_precision", "ieee"), ("cudnn.fp32_precision", "none"),
        ("mkldnn.fp32_precision", "none"), ("mkldnn.matmul.fp32_precision", "ieee"),
        ("mkldnn.conv.fp32_precision", "ieee"), ("mkldnn.rnn.fp32_precision", "ieee"), ("cudnn.allow_tf32", False),
        ("cudnn.conv.fp32_precision", "ieee"), ("cudnn.rnn.fp32_precision", "ieee"),
        ("cuda.matmul.allow_fp16_reduced_precision_reduction", True),
        ("cuda.matmul.allow_bf16_reduced_precision_reduction", True), ("cuda.matmul.allow_fp16_accumulation", False),
        ("cudnn.enabled", True), ("cudnn.benchmark", False), ("cudnn.deterministic", True),
    ]  # fmt: skip
    return (*settings, *(setting for name, value in attributes if (setting := _attribute(name, value)) is not None))


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


SETTINGS = _settings()


class _Process:
    """Stands for the process in `shared_change`."""


_PROCESS = _Process()


@contextmanager
def canonical_numerics() -> Iterator[None]:
    """Compute inside as if nothing had been switched on outside.

    May be entered again inside. Raises RuntimeError at the end where a setting of the process was changed
    meanwhile.
    """
    if getattr(_THREAD, "depth", 0):  # all is canonical, unless something in between switched autocast on again
        with ExitStack() as stack:
            _switch_thread(stack)
            yield
        return
    with ExitStack() as stack:
        stack.enter_context(shared_change(_PROCESS, "settings", _make_canonical))
        stack.enter_context(_counted())
        dtype = torch.get_default_dtype()
        _switch_thread(stack)
        yield
        changed = [setting.name for setting in SETTINGS if not setting.holds()]
        if torch.get_default_dtype() != dtype:
            changed.append("torch.set_default_dtype")
        if changed:
            raise RuntimeError(
                f"{changed[0]} was changed while a value was being computed, by another thread or by what was asked, "
                "so what it was computed with is unknown: make such changes before rewards and metrics are asked"
            )


def canonical(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorate what measures: it computes in canonical numerics, whatever its caller has switched on.

    A caller that `torch.compile` compiles calls it as it is: compiled kernels would have other bits.
    """

    @functools.wraps(fn)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with canonical_numerics():
            return fn(*args, **kwargs)

    as_it_is: Callable[P, R] = torch.compiler.disable(inside)  # type: ignore[no-untyped-call] # torch's has no types
    return as_it_is


@contextmanager
def callers_precision() -> Iterator[None]:
    """As `canonical_numerics`, but float32 precision and kernels stay as the process has set them.

    For what is no measurement and takes long: a restorer may use TF32, but not by chance another dtype.
    """
    with ExitStack() as stack:
        _switch_thread(stack)
        yield


_THREAD = threading.local()


@contextmanager
def _counted() -> Iterator[None]:
    _THREAD.depth = 1
    try:
        yield
    finally:
        _THREAD.depth = 0


def _switch_thread(stack: ExitStack) -> None:
    for device in DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    tiny = sys.float_info.min
    if tiny / 2 == 0.0:
        torch.set_flush_denormal(False)
        stack.callback(torch.set_flush_denormal, True)
    if torch.get_default_dtype() != torch.float32:
        stack.enter_context(_Float32())


def precision_settings(*, cuda: bool) -> dict[str, Any]:
    """Return the process's settings that decide the bits of float32 and are not canonical, by their names in torch.

    For what runs with `callers_precision`: they belong to its identity. They are the process's own also while some
    thread measures. cuda: whether those of CUDA matter.
    """
    values = {setting.name: _BEFORE.get(setting.name, setting.now()) for setting in SETTINGS}
    return {
        setting.name: values[setting.name] for setting in SETTINGS
        if not setting.is_canonical(values[setting.name]) and (cuda or "cud" not in setting.name)
    }  # fmt: skip


_BEFORE: dict[str, Any] = {}
"""What the process had set, while a thread measures."""


def _make_canonical() -> Undo:
    before = [(setting, setting.now()) for setting in SETTINGS]
    _BEFORE.update({setting.name: value for setting, value in before})
    for setting in SETTINGS:
        if not setting.holds():
            setting.write(setting.canonical)

    def undo() -> None:
        _BEFORE.clear()
        # What somebody else has set meanwhile stands. Old and new names write one another, so what is right is left.
        changed = [(setting, value) for setting, value in before if setting.holds() and value is not None]
        for setting, value in changed:
            if setting.now() != value:
                setting.write(value)
        for setting, value in changed:
            if setting.now() != value:
                setting.write(value)

    return undo


class _Float32(TorchFunctionMode):
    """Float32 in the place of the default dtype, in this thread alone.

    The default dtype decides in two places: where a tensor is made of Python numbers or of none, and where integers
    become fractions. Both are asked for float32 here.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS and kwargs.get("dtype") is None:
            if func not in _OF_NUMBERS:
                return func(*args, **kwargs | {"dtype": torch.float32})
            made = func(*args, **kwargs)
            receiver = next(iter([*args, *kwargs.values()]), None)
            if made.is_floating_point() and made.dtype == torch.get_default_dtype() and not hasattr(receiver, "dtype"):
                return func(*args, **kwargs | {"dtype": torch.float32})
            return made
        if func in _FRACTIONS:
            tensors = [argument for argument in args if isinstance(argument, Tensor)]
            if tensors and not any(argument.is_floating_point() or argument.is_complex() for argument in tensors):
                made = func(*args, **kwargs)
                if made.is_floating_point():
                    args = [
                        argument.to(torch.float32) if isinstance(argument, Tensor) else argument for argument in args
                    ]
                    return func(*args, **kwargs)
                return made
        return func(*args, **kwargs)


_OF_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.range,
                         torch.scalar_tensor})  # fmt: skip
"""What they are made of decides."""
_MAKERS = _OF_NUMBERS | {
    torch.empty, torch.zeros, torch.ones, torch.eye, torch.linspace, torch.logspace, torch.rand, torch.randn,
    torch.hann_window, torch.hamming_window, torch.blackman_window, torch.bartlett_window, torch.kaiser_window,
    torch.fft.fftfreq, torch.fft.rfftfreq, torch.empty_strided,
}  # fmt: skip
_NAMES = ("true_divide", "div", "divide", "mul", "multiply", "add", "sub", "subtract", "rsub", "pow", "sqrt", "rsqrt",
          "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "atan", "atan2",
          "sigmoid", "reciprocal", "erf")  # fmt: skip
_SIGNS = ("truediv", "mul", "add", "sub", "pow")
_FRACTIONS = frozenset(
    [getattr(home, name) for home in (torch, Tensor) for name in _NAMES if hasattr(home, name)]
    + [getattr(Tensor, f"__{side}{sign}__") for sign in _SIGNS for side in ("", "r")]
)
