"""The settings of a resumable folder: what a run is made of, and which option changed if it is another run's."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from zoomiqa_reward.errors import UnknownState, ZoomIQAError

DIGESTS = ("state", "fingerprint")
"""Hashes of everything: they follow other options, so they are named only where nothing else changed."""
SHOWN = 3
"""Changed options that a message lists."""


class AnotherRun(ZoomIQAError, ValueError):
    """The folder holds a run with other settings, so it cannot be continued."""


def identity_of(part: Any) -> dict[str, Any]:
    """Return what a reward, model or restorer is made of, by option; JSON values only.

    Its member `identity` where it has one, else its name; with its fingerprint. Raises UnknownState.
    """
    identity = getattr(part, "identity", None) or {"name": part.name}
    plain: dict[str, Any] = json.loads(json.dumps({**identity, "fingerprint": _fingerprint_of(part)}, default=str))
    return plain


def fingerprint_if_known(part: Any) -> str | None:
    """Return the fingerprint of a reward, or None where its state cannot be read: for reports that nothing resumes."""
    try:
        return _fingerprint_of(part)
    except UnknownState:
        return None


def _fingerprint_of(part: Any) -> str:
    """Return the fingerprint that a reward, model or restorer declares, else that of its state. Raises UnknownState."""
    from zoomiqa_reward.rewards.identity import state_digest  # it needs this package

    declared = getattr(part, "fingerprint", None)
    return state_digest(part) if declared is None else str(declared)


def refuse_another_run(folder: Path, before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> None:
    """Raise AnotherRun that names each option that changed; `free` are top-level options that may change."""
    # Left out first: beside a free option that changed, a fingerprint would be passed over as following from it.
    bound = [{key: value for key, value in settings.items() if key not in free} for settings in (before, now)]
    changed = changes(*bound)
    if changed:
        more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise AnotherRun(
            f"{folder} holds another run ({'; '.join(changed[:SHOWN])}{more}): give the same options to continue it, "
            "or another folder"
        )


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one line per changed option: its dotted name, what it was and what it is.

    Options of one of the two alone come first: they tell the runs of two commands apart.

    >>> changes({"reward": {"mode": "direct"}, "seed": 0}, {"reward": {"mode": "reason"}, "seed": 0})
    ["reward.mode was 'direct', now 'reason'"]
    """
    old, new = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(now, default=str))))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    names.sort(key=lambda name: (_option(name) in before) == (_option(name) in now))
    readable = [name for name in names if name.rpartition(".")[2] not in DIGESTS]
    return [_line(name, old, new) for name in readable or names]


def _option(name: str) -> str:
    """Return the top-level option that a dotted name belongs to."""
    return name.partition(".")[0].partition("[")[0]


def _line(name: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    if name.rpartition(".")[2] in (*DIGESTS, "weights") and name in old and name in new:
        return f"{name} changed: other weights, code or attributes"
    return f"{name} was {_shown(name, old)}, now {_shown(name, new)}"


def _shown(name: str, leaves: dict[str, Any]) -> str:
    return repr(leaves[name])[:80] if name in leaves else "not set"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not name):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for k, item in enumerate(value):
            yield from _leaves(item, f"{name}[{k}]")
    else:
        yield name, value
