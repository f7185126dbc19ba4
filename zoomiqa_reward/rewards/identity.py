"""Identity by state: two objects are the same only if everything that their values depend on is the same.

`state_digest` walks an object: code, closures, defaults, the globals that a function reads, the modules of the user's
that it reaches, attributes, tensors, arrays and weights as they are in memory. What it cannot read raises
`UnknownState`; it never counts as equal. Not covered: files and environment variables that code reads.
"""

import collections
import dataclasses
import enum
import functools
import hashlib
import inspect
import operator
import re
import struct
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.rewards.code_reach import imported_by, is_foreign, is_installed, reach_of, version_of
from zoomiqa_reward.rewards.module_state import states_of
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.weights_digest import weights_digest


def state_digest(*values: object) -> str:
    """Return 16 hex digits that change with anything that the behaviour of `values` depends on.

    Reads code, closures, globals that functions read, attributes, array contents and module weights. Functions of
    installed packages count by name and version. Raises UnknownState that names the attribute that cannot be read.
    """
    walker = _Walker(_PATHS.of_thread)
    return digest(*(walker.digest(value, "value") for value in values))


def added_by_subclass(value: object, base: type) -> tuple[object, ...]:
    """Return what an object's class adds to `base`, which made the fingerprint: its code, and its attributes' values.

    Nothing for an object of `base` itself.
    """
    if type(value) is base:
        return ()
    made = [vars(kind)["__init__"].__code__ for kind in base.__mro__ if "__init__" in vars(kind) and kind is not object]
    names = {name for code in made for name in code.co_names} | set(getattr(base, "__dataclass_fields__", ()))
    state = {key: item for key, item in attributes_of(value).items() if key not in names and not hasattr(base, key)}
    return type(value), state


class _Paths(threading.local):
    """The objects on the way down, in this thread: a fingerprint that is asked for on the way walks on from here."""

    def __init__(self) -> None:
        self.of_thread: dict[int, int] = {}


_PATHS = _Paths()
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType, types.WrapperDescriptorType)
_REDUCED = (
    operator.attrgetter, operator.itemgetter, operator.methodcaller, slice, re.Pattern, bytearray,
)  # fmt: skip
"""Objects of Python that say all about themselves to pickle."""
_GRAD_MODES = (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.set_grad_enabled, torch.autocast)
_C_DESCRIPTORS = (
    types.MemberDescriptorType, types.GetSetDescriptorType, types.ClassMethodDescriptorType,
    type(vars(collections.namedtuple("Pair", "first"))["first"]),
)  # fmt: skip
"""They give what the instance holds, which is read there."""


class _Walker:
    """One walk: remembers objects on the way down, so that cycles end."""

    def __init__(self, on_path: dict[int, int]) -> None:
        self.on_path = on_path
        self.done: dict[int, tuple[Any, bytes]] = {}
        """Digests of functions and classes; the object is held so that its id stays its own."""

    def digest(self, value: Any, where: str) -> bytes:
        if value is None or type(value) in (bool, int, str, bytes, complex, range):
            return _hash(type(value).__name__, repr(value))
        if type(value) is float:
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
            return _hash("enum", value.name, self.digest(value.value, where), self.digest(type(value), where))
        if isinstance(value, torch.dtype | torch.device | torch.Size | np.dtype | PurePath | types.EllipsisType):
            return _hash(type(value).__name__, str(value))
        if isinstance(value, Tensor):
            return _hash("tensor", _tensor(value, where), self._beside(value, (Tensor, nn.Parameter), where))
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, where)
        if isinstance(value, functools.partial | functools.partialmethod):
            held = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return _hash("partial", *(self.digest(item, f"{where}.{name}") for name, item in held.items()))
        if isinstance(value, int | float | complex | str | bytes | list | tuple | set | frozenset | dict
                      | collections.deque | types.MappingProxyType):  # fmt: skip
            return self._container(value, where)
        if isinstance(value, types.ModuleType):
            return self._whole_module(value, where)
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, types.MethodType):
            return _hash("method", self.digest(value.__func__, where), self.digest(value.__self__, f"{where}.__self__"))
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, functools._lru_cache_wrapper):
            return _hash("cached", self.digest(value.__wrapped__, where))
        if isinstance(value, _BUILTIN):
            return self._builtin(value, where)
        if isinstance(value, np.ufunc) and any(value is item for item in vars(np).values()):
            return _hash("ufunc", str(value), version_of("numpy"))
        if isinstance(value, functools.singledispatchmethod):
            return _hash("dispatch", self.digest(dict(value.dispatcher.registry), where))
        if isinstance(value, _REDUCED):
            return _hash(*(self.digest(item, where) for item in value.__reduce_ex__(2)[:3]))
        if isinstance(value, _GRAD_MODES):
            return _hash("mode", _name(type(value)), self.digest(_settings(value), where))
        if isinstance(value, nn.Module):
            return self._module(value, where)
        return self._object(value, where)

    def _container(self, value: Any, where: str) -> bytes:
        """Digest what a container, number or text holds, and what a subclass adds. Order counts as for equality."""
        base = next(kind for kind in type(value).__mro__ if kind in _HELD)
        if issubclass(base, dict | types.MappingProxyType):
            held = [self.digest(key, where) + self.digest(item, f"{where}[{key!r}]") for key, item in value.items()]
            held = held if isinstance(value, collections.OrderedDict) else sorted(held)
        elif issubclass(base, set | frozenset):
            held = sorted(self.digest(item, where) for item in value)
        elif issubclass(base, list | tuple | collections.deque):
            held = [self.digest(item, f"{where}[{k}]") for k, item in enumerate(value)]
        else:
            held = [self.digest(base(value), where)]
        held += [_hash(name, self.digest(getattr(value, name), f"{where}.{name}"))
                 for name in ("default_factory", "maxlen") if hasattr(value, name)]  # fmt: skip
        kinds = (base, collections.OrderedDict, collections.defaultdict, collections.Counter)
        return _hash(base.__name__, *held, self._beside(value, kinds, where))

    def _beside(self, value: Any, usual: tuple[type, ...], where: str) -> bytes:
        """Digest what an object of a subclass holds beside its content: attributes, and the subclass's code."""
        state = attributes_of(value)
        kind = b"" if type(value) in usual else self.digest(type(value), where)
        return _hash(kind, *(_hash(key, self.digest(item, f"{where}.{key}")) for key, item in sorted(state.items())))

    def _array(self, value: Any, where: str) -> bytes:
        array = np.asarray(value)
        if isinstance(value, np.ma.MaskedArray):
            parts = {"data": array, "mask": np.ma.getmaskarray(value), "fill": np.asarray(value.fill_value)}
            return _hash("masked", self.digest(parts, where))
        subclass = type(value) not in (np.ndarray, np.memmap) and isinstance(value, np.ndarray)
        beside = self._beside(value, (), where) if subclass else b""
        if array.dtype.hasobject:
            items = (self.digest(item, where) for item in array.ravel().tolist())
            return _hash("objects", str(array.shape), *items, beside)
        return _hash("array", str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes(), beside)

    def _builtin(self, value: Any, where: str) -> bytes:
        owner = getattr(value, "__self__", None)
        holds_state = owner is not None and not isinstance(owner, types.ModuleType | type)
        state = self.digest(owner, f"{where}.__self__") if holds_state else b""
        return _hash("builtin", _name(value), version_of(getattr(value, "__module__", None) or "builtins"), state)

    def _function(self, fn: types.FunctionType, where: str) -> bytes:
        inner = getattr(fn, "__wrapped__", None)
        home = str(fn.__globals__.get("__name__") or "")  # `__module__` of a wrapper is that of what it wraps
        is_of_package = bool(home) and is_installed(home)
        if inner is not None and is_of_package:
            # What a decorator was given stands in its wrapper's closure.
            if isinstance(registry := getattr(fn, "registry", None), types.MappingProxyType):  # singledispatch
                given = [self.digest(registry, where)]
            else:
                given = [] if home.startswith("torch._dynamo") else self._cells(fn, where)  # compiled: the same values
            return _hash("decorated", fn.__code__.co_qualname, self.digest(inner, where), *given)
        if is_of_package:
            return _hash("installed", _name(fn), version_of(home), *self._cells(fn, where))
        parts = [_hash("function", fn.__qualname__), self._code(fn.__code__, where)]
        parts.append(self.digest(fn.__defaults__, f"{where}.__defaults__"))
        parts.append(self.digest(fn.__kwdefaults__, f"{where}.__kwdefaults__"))
        parts += self._cells(fn, where)
        attributes = {key: item for key, item in vars(fn).items() if not key.startswith("_")}
        parts.append(self.digest(attributes, where))
        reach = reach_of(fn.__code__)
        for name in sorted(reach.globals & fn.__globals__.keys()):
            item = fn.__globals__[name]
            spot = f"{where}: global {name}"
            held = self._used_module(item, reach.names, spot) if isinstance(item, types.ModuleType) else None
            parts.append(_hash(name, self.digest(item, spot) if held is None else held))
        try:
            for name, module in imported_by(fn):
                spot = f"{where}: import {name}"
                used = _hash(version_of(name)) if module is None else self._used_module(module, reach.names, spot)
                parts.append(_hash(name, used))
        except ImportError as error:
            raise UnknownState(f"{where} imports what is not there ({error}), so its state cannot be read") from error
        return _hash(*parts)

    def _used_module(self, module: types.ModuleType, names: frozenset[str], where: str) -> bytes:
        """Digest what a function may take from a module: of the user's own, everything that it names."""
        if is_installed(module.__name__):
            return _hash("module", module.__name__, version_of(module.__name__))
        if id(module) in self.on_path:
            return _hash("cycle", str(self.on_path[id(module)]))
        self.on_path[id(module)] = len(self.on_path)
        try:
            return self._taken(module, names, where)
        finally:
            del self.on_path[id(module)]

    def _taken(self, module: types.ModuleType, names: frozenset[str], where: str) -> bytes:
        parts = []
        for name in sorted(names & vars(module).keys()):
            item, spot = vars(module)[name], f"{where}.{name}"
            is_inner = isinstance(item, types.ModuleType)
            parts.append(_hash(name, self._used_module(item, names, spot) if is_inner else self.digest(item, spot)))
        return _hash("module", module.__name__, *parts)

    def _whole_module(self, module: types.ModuleType, where: str) -> bytes:
        """Digest a module that is held as a value: nobody can tell what is taken from it."""
        if is_installed(module.__name__):
            return _hash("module", module.__name__, version_of(module.__name__))
        names = frozenset(name for name in vars(module) if not name.startswith("__"))
        return self._taken(module, names, where)

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
        if is_installed(kind.__module__):
            return _hash("class", _name(kind), version_of(kind.__module__))
        parts = [
            _hash("class", _name(kind)),
            *(self.digest(base, where) for base in (*kind.__bases__, type(kind)) if base not in (object, type)),
        ]
        for name, member in _members(kind):
            parts.append(_hash(name, self.digest(member, f"{where}.{name}")))
        return _hash(*parts)

    def _module(self, module: nn.Module, where: str) -> bytes:
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
            raise UnknownState(
                f"{where} has weights without data (device meta): load them before its state is asked for"
            )
        parts: list[bytes] = [weights_digest(module).encode()]
        for name, child in module.named_modules():
            spot = f"{where}.{name}" if name else where
            installed = is_installed(type(child).__module__)
            parts.append(_hash(name, str(child.training), self.digest(type(child), spot), child.extra_repr()))
            for key, value, is_needed in states_of(child, is_installed=installed):
                try:
                    parts.append(_hash(key, self.digest(value, f"{spot}.{key}")))
                except UnknownState:
                    if is_needed:
                        raise
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
        if is_foreign(type(value).__module__) and not dataclasses.is_dataclass(value):
            raise UnknownState(_advice(where, value))
        if not hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
            raise UnknownState(_advice(where, value))
        state = attributes_of(value)
        items = [_hash(key, self.digest(item, f"{where}.{key}")) for key, item in sorted(state.items())]
        return _hash("object", self.digest(type(value), where), *items)


_HELD = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, collections.deque,
         types.MappingProxyType)  # fmt: skip
_CLASS_NOISE = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__dataclass_fields__",
    "__dataclass_params__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__firstlineno__", "__static_attributes__", "__match_args__", "__qualname__", "__parameters__", "__orig_bases__",
    "__abstractmethods__", "__protocol_attrs__", "__non_callable_proto_members__", "_is_protocol",
    "_is_runtime_protocol",
    "__subclasshook__", "__replace__", "__hash__",
})  # fmt: skip


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the members of a class that its behaviour depends on: functions, values, networks, other objects."""
    for name, member in sorted(vars(kind).items()):
        if name in _CLASS_NOISE or name.startswith("_abc") or isinstance(member, _C_DESCRIPTORS):
            continue
        member = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, functools.cached_property):
            member = member.func
        yield name, member


def attributes_of(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots included."""
    state: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            is_mangled = name.startswith("__") and not name.endswith("__")
            real = f"_{kind.__name__.lstrip('_')}{name}" if is_mangled else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, real):
                state[real] = getattr(value, real)
    return state


def _settings(mode: Any) -> dict[str, Any]:
    """Return what a mode of torch was given; what it keeps of the time before it was entered does not count."""
    return {key: item for key, item in vars(mode).items() if key in ("mode", "device", "fast_dtype", "_enabled")}


def _tensor(tensor: Tensor, where: str) -> bytes:
    if tensor.is_meta:
        raise UnknownState(f"{where} is a tensor without data (device meta): load it before its state is asked for")
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise UnknownState(_advice(where, tensor))
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    data = bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""
    return _hash(str(tensor.dtype), str(tuple(tensor.shape)), data)


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
