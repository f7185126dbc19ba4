"""Which degradations put an image into which state, and images made on demand with their record.

This is the truth that planted cases and thresholds are built from: it knows `train_iqa.nano.degradations` and its
records, and nothing of what is measured on pixels.
"""

from collections.abc import Mapping

import numpy as np

from train_iqa.nano.degradations import Array, DamageRecord, Step, degrade
from train_iqa.nano.rationale import word_key

Box = tuple[float, float, float, float]

LOOKS: Mapping[str, tuple[str, ...]] = {
    "noisy": ("gaussian_noise", "poisson_noise", "colour_noise"),
    "blurred": ("gaussian_blur", "motion_blur", "defocus_blur", "resample"),
    "blocky": ("jpeg",),
    "dark": ("dark",),
    "bright": ("bright",),
    "flat": ("flat",),
    "harsh": ("harsh",),
    "faded": ("faded",),
    "garish": ("garish",),
}
"""State -> what `train_iqa.nano.rationale.word_key` calls the degradations that cause it."""
OPPOSITE: Mapping[str, str] = {
    "dark": "bright", "bright": "dark", "flat": "harsh", "harsh": "flat", "faded": "garish", "garish": "faded",
}  # fmt: skip
DAMAGES = ("noisy", "blurred", "blocky")
"""States that an undamaged photograph is not in, whatever it shows; light and colour may be so by themselves."""
MIXED: Mapping[str, frozenset[str]] = {
    "blocky": frozenset({"blurred", "flat", "faded"}),
    "dark": frozenset({"flat", "faded"}),
    "bright": frozenset({"flat", "faded", "blocky", "noisy"}),
    "harsh": frozenset({"garish", "noisy", "blocky", "bright", "dark"}),
    "flat": frozenset({"faded"}),
    "garish": frozenset({"noisy", "blocky", "harsh"}),
    "noisy": frozenset({"garish", "harsh"}),
}
"""State -> others that its degradation may really bring along, so that nothing is known of them."""
_KINDS = {"dark": "exposure", "bright": "exposure", "flat": "contrast", "harsh": "contrast", "faded": "colour",
          "garish": "colour"}  # fmt: skip
_PROBE = np.full((8, 8, 3), 0.5, dtype=np.float32)


def state_of(record: DamageRecord) -> str | None:
    """Return the state that a record of one step names; None for an untouched image or a state without a hint.

    Raises ValueError for several steps.
    """
    if len(record.steps) > 1:
        raise ValueError(f"a record of {len(record.steps)} steps: planted cases are made of one")
    looks = {word_key(step) for step in record.steps}
    return next((state for state, names in LOOKS.items() if looks & set(names)), None)


def knows_absent(record: DamageRecord, state: str) -> bool:
    """Return whether the record alone tells that its image, made from a clean photograph, is not in a state."""
    actual = state_of(record)
    if actual is None:
        return not record.steps and state in DAMAGES
    if state == actual or state in MIXED.get(actual, ()):
        return False
    return state in DAMAGES or OPPOSITE.get(actual) == state


def degrade_to(
    image: Array, state: str, severity: float, rng: np.random.Generator, box: Box | None = None
) -> tuple[Array, DamageRecord]:
    """Return a clean HWC float image brought into a state of `LOOKS`, and the record.

    Some degradations draw their direction; it is tried on a few grey pixels first, so that the wanted one comes out.
    """
    wanted = LOOKS[state]
    kind = _KINDS.get(state) or str(rng.choice(wanted))
    step = Step(kind=kind, severity=severity)
    while True:
        seed = int(rng.integers(0, 2**31))
        _, tried = degrade(_PROBE, (step,), np.random.default_rng(seed))
        if word_key(tried.steps[0]) in wanted:
            return degrade(image, (step,), np.random.default_rng(seed), box)
