"""Identity by state: two objects are the same only if everything that their values depend on is the same.

`state_digest` walks an object: code, closures, defaults, the globals that a function names, attributes, tensors, arrays
and weights as they are in memory. What it cannot read raises `UnknownState`; it never counts as equal.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import struct
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.runs.digest import digest, file_digest
from zoomiqa_reward.runs.weights_digest import weights_digest


def state_digest(*values: object) -> str:
    """Return 16 hex digits that change with anything that the behaviour of `values` depends on.

    Reads code, closures, globals that functions name, attributes, array contents and module weights. Functions of
    installed packages count by name and version. Raises UnknownState that names the attribute that cannot be read.
    """
    walker = _Walker()
    return digest(*(walker.digest(value, "value") for value in values))


class _Walker:
    """One walk: remembers objects on the way down, so that cycles end."""

    def __init__(self) -> None:
        self.on_path: dict[int, int] = {}
        self.done: dict[int, tuple[Any, bytes]] = {}
        """Digests of functions and classes; the object is held so that its id stays its own."""

    def digest(self, value: Any, where: str) -> bytes:
        if value is None or isinstance(value, bool | int | str | bytes | complex | range):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, float):
            return _hash("float", struct.pack("<d", value))
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.on_path:
            return _hash("cycle", str(self.on_path[id(value)]))
        self.on_path[id(value)] = len(self.on_path)
        try:
            digest = self._compound(value, where)
        finally:
            del self.on_path[id(value)]
        if isinstance(value, type | types.FunctionType):
            self.done[id(value)] = (value, digest)
        return digest

    def _compound(self, value: Any, where: str) -> bytes:  # noqa: C901 - one line per kind of value
        if isinstance(value, enum.Enum):
            return _hash("enum", _name(type(value)), value.name)
        if isinstance(value, torch.dtype | torch.device | torch.Size | np.dtype | PurePath | types.EllipsisType):
            return _hash(type(value).__name__, str(value))
        if isinstance(value, Tensor):
            return _tensor(value, where)
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value), where)
        if isinstance(value, list | tuple):
            return _hash(type(value).__name__, *(self.digest(item, f"{where}[{k}]") for k, item in enumerate(value)))
        if isinstance(value, set | frozenset):
            return _hash("set", *sorted(self.digest(item, where) for item in value))
        if isinstance(value, dict):
            pairs = [self.digest(key, where) + self.digest(item, f"{where}[{key!r}]") for key, item in value.items()]
            return _hash("dict", *sorted(pairs))
        if isinstance(value, functools.partial):
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return _hash("partial", *(self.digest(part, f"{where}.{name}") for name, part in parts.items()))
        if isinstance(value, types.ModuleType):
            return _hash("module", value.__name__, _version(value.__name__))
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, types.MethodType):
            return _hash("method", self.digest(value.__func__, where), self.digest(value.__self__, f"{where}.__self__"))
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc | types.MethodDescriptorType):
            return _hash("builtin", _name(value), _version(getattr(value, "__module__", None) or "builtins"))
        if isinstance(value, nn.Module):
            return self._module(value, where)
        return self._object(value, where)

    def _array(self, array: np.ndarray, where: str) -> bytes:
        if array.dtype.hasobject:
            return _hash("objects", str(array.shape), *(self.digest(item, where) for item in array.ravel().tolist()))
        return _hash("array", str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes())

    def _function(self, fn: types.FunctionType, where: str) -> bytes:
        inner = getattr(fn, "__wrapped__", None)
        if inner is not None and _is_installed(_module_of(fn)):
            return _hash("decorated", fn.__code__.co_qualname, self.digest(inner, where))
        if _is_installed(fn.__module__):
            return _hash("installed", _name(fn), _version(fn.__module__), *self._cells(fn, where))
        parts = [_hash("function", fn.__qualname__), self._code(fn.__code__, where)]
        parts.append(self.digest(fn.__defaults__, f"{where}.__defaults__"))
        parts.append(self.digest(fn.__kwdefaults__, f"{where}.__kwdefaults__"))
        parts += self._cells(fn, where)
        for name in sorted(_names(fn.__code__)):
            if name in fn.__globals__:
                parts.append(_hash(name, self.digest(fn.__globals__[name], f"{where}: global {name}")))
        return _hash(*parts)

    def _cells(self, fn: types.FunctionType, where: str) -> list[bytes]:
        digests = []
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                digests.append(_hash(name, self.digest(cell.cell_contents, f"{where}: closure {name}")))
            except ValueError as error:
                if isinstance(error, UnknownState):
                    raise
                digests.append(_hash(name, "empty"))  # a cell that is not filled yet
        return digests

    def _code(self, code: types.CodeType, where: str) -> bytes:
        consts = [self._code(constant, where) if isinstance(constant, types.CodeType) else self.digest(constant, where)
                  for constant in code.co_consts]  # fmt: skip
        return _hash("code", code.co_code, " ".join(code.co_names), " ".join(code.co_varnames), *consts)

    def _class(self, kind: type, where: str) -> bytes:
        if _is_installed(kind.__module__):
            return _hash("class", _name(kind), _version(kind.__module__))
        parts = [
            _hash("class", _name(kind)),
            *(self.digest(base, where) for base in kind.__bases__ if base is not object),
        ]
        for name, member in sorted(vars(kind).items()):
            if name in _CLASS_NOISE or name.startswith("_abc"):
                continue
            member = member.__func__ if isinstance(member, staticmethod | classmethod) else member
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            if isinstance(member, types.FunctionType) or _is_plain(member):
                parts.append(_hash(name, self.digest(member, f"{where}.{name}")))
        return _hash(*parts)

    def _module(self, module: nn.Module, where: str) -> bytes:
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
            raise UnknownState(
                f"{where} has weights without data (device meta): load them before its state is asked for"
            )
        kinds = [(name, type(child)) for name, child in module.named_modules()]
        parts: list[bytes] = [weights_digest(module).encode()]
        for name, kind in kinds:
            parts.append(_hash(name, self.digest(kind, f"{where}.{name}")))
        for name, child in module.named_modules():
            attributes = {
                key: item for key, item in vars(child).items() if not key.startswith("_") and key != "training"
            }
            parts.append(_hash(name, str(child.training)))
            if not _is_installed(type(child).__module__):
                parts.append(self.digest(attributes, f"{where}.{name}" if name else where))
            else:
                parts.append(_hash(child.extra_repr()))
        return _hash("nn.Module", *parts)

    def _object(self, value: Any, where: str) -> bytes:
        fingerprint = inspect.getattr_static(type(value), "fingerprint", None)
        default = getattr(sys.modules.get("zoomiqa_reward.rewards.base"), "Reward", None)
        is_default = default is not None and fingerprint is inspect.getattr_static(default, "fingerprint", None)
        declared = vars(value).get("fingerprint") if hasattr(value, "__dict__") else None
        if isinstance(declared, str):
            return _hash("fingerprint", declared)
        if fingerprint is not None and not is_default and where != "value":
            return _hash("fingerprint", str(value.fingerprint))
        if _is_foreign(type(value).__module__) and not dataclasses.is_dataclass(value):
            raise UnknownState(_advice(where, value))
        if hasattr(value, "__dict__"):
            state: dict[str, Any] = dict(vars(value))
        elif hasattr(type(value), "__slots__"):
            state = {}
        else:
            raise UnknownState(_advice(where, value))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    state[name] = getattr(value, name)
        items = [_hash(key, self.digest(item, f"{where}.{key}")) for key, item in sorted(state.items())]
        return _hash("object", self.digest(type(value), where), *items)


_CLASS_NOISE = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__dataclass_fields__",
    "__dataclass_params__",
    "__firstlineno__", "__static_attributes__", "__match_args__", "__qualname__", "__parameters__", "__orig_bases__",
    "__abstractmethods__", "__protocol_attrs__", "__non_callable_proto_members__", "_is_protocol",
    "_is_runtime_protocol",
    "__subclasshook__", "__replace__", "__hash__",
})  # fmt: skip


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes | tuple | frozenset | list | dict | set
                                       | Tensor | np.ndarray)  # fmt: skip


def _names(code: types.CodeType) -> set[str]:
    """Names that the code may look up among the globals, those of inner functions included."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names(const)
    return names


def _tensor(tensor: Tensor, where: str) -> bytes:
    if tensor.is_meta:
        raise UnknownState(f"{where} is a tensor without data (device meta): load it before its state is asked for")
    flat = tensor.detach().cpu().contiguous().flatten()
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise UnknownState(_advice(where, tensor))
    data = bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""
    return _hash("tensor", str(tensor.dtype), str(tuple(tensor.shape)), data)


OWN_PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
"""Their functions count by the contents of their module's file: the version stays the same while the code changes."""


@functools.lru_cache(maxsize=1024)
def _is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed package, whose code its version names."""
    if module is None or module == "builtins":
        return True
    root = module.partition(".")[0]
    if root in OWN_PACKAGES or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and ("site-packages" in file or "dist-packages" in file)


@functools.lru_cache(maxsize=1024)
def _version(module: str) -> str:
    root = module.partition(".")[0]
    if root in OWN_PACKAGES:
        file = getattr(sys.modules.get(module), "__file__", None)
        return "unknown" if file is None else file_digest(file)
    try:
        return version(root)
    except PackageNotFoundError:
        return ".".join(map(str, sys.version_info[:3])) if root in sys.stdlib_module_names else "unknown"


def _module_of(fn: types.FunctionType) -> str | None:
    """The module that a function's code was written in; a decorator's wrapper carries the name of what it wraps."""
    return fn.__globals__.get("__name__")


def _is_foreign(module: str | None) -> bool:
    """Whether objects of a module may hide state: those of Python and of installed packages, not our own."""
    return _is_installed(module) and (module or "").partition(".")[0] not in OWN_PACKAGES


def _name(value: Any) -> str:
    return (
        f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', repr(value)))}"
    )


def _hash(*parts: str | bytes) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(struct.pack("<q", len(data)) + data)
    return total.digest()


def _advice(where: str, value: Any) -> str:
    return (
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, whose state cannot be read, so values that "
        "depend on it can be neither cached nor resumed; pass fingerprint= with a text that names that state"
    )
