"""What an object holds: its attributes, and what its code closes over, so that no wrapper hides a reward or a network.

A wrapper may keep what it wraps in an attribute, a slot, a member of its class, a list, a closure, a partial, a bound
method, or read it as a global in its `__call__`. All of these are looked into, three levels deep; code of installed
packages is not.
"""

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zoomiqa_reward.rewards.code_reach import is_installed, reach_of
from zoomiqa_reward.rewards.identity import attributes_of

DEPTH = 3


def find_members(owner: object, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """Yield what is wanted among the things that an object holds, the object itself left out."""
    yield from _search(_held_by(owner), wanted, DEPTH, {id(owner)})


def _search(values: Iterable[Any], wanted: Callable[[Any], bool], depth: int, seen: set[int]) -> Iterator[Any]:
    for value in values:
        if id(value) in seen:
            continue
        if wanted(value):
            seen.add(id(value))
            yield value
        elif depth:
            seen.add(id(value))
            yield from _search(_inside(value), wanted, depth - 1, seen)


def _inside(value: Any) -> Iterable[Any]:
    """Return what a container, a configuration or a function holds; nothing for other objects."""
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return _reached(value)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return [getattr(value, key, None) for key in value.__dataclass_fields__]
    return ()


def _held_by(owner: object) -> Iterator[Any]:
    """Yield an object's attributes, also in slots, the members of its class, and what its `__call__` reaches."""
    yield from attributes_of(owner).values()
    for kind in type(owner).__mro__:
        if not is_installed(kind.__module__):
            members = vars(kind).items()
            yield from (member for name, member in members if not name.startswith("__") and not _is_code(member))
    call = next((vars(kind)["__call__"] for kind in type(owner).__mro__ if "__call__" in vars(kind)), None)
    if isinstance(call, types.FunctionType):
        yield from _reached(call)
    if isinstance(owner, types.FunctionType | types.MethodType | functools.partial):
        yield from _inside(owner)


def _is_code(member: object) -> bool:
    return isinstance(member, types.FunctionType | types.MemberDescriptorType | property | classmethod | staticmethod
                      | functools.cached_property)  # fmt: skip


def _reached(fn: types.FunctionType) -> Iterator[Any]:
    """Yield what a function closes over, its defaults, and the globals that it reads."""
    if is_installed(str(fn.__globals__.get("__name__") or "__main__")):
        return
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    for name in reach_of(fn.__code__).globals & fn.__globals__.keys():
        yield fn.__globals__[name]
