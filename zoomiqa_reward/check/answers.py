"""What a reward said about one photograph and everything that was made of it."""

from dataclasses import dataclass

from zoomiqa_reward.check.ascent import Ascent


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Values of one photograph; NaN where the reward gave none."""

    ladders: dict[str, tuple[float, ...]]
    """By kind, the untouched image first."""
    worsened: dict[str, tuple[float, ...]]
    """By kind, the bad image that was made worse first."""
    empty: dict[str, tuple[float, ...]]
    """By kind, the honest candidate first, then the emptied images."""
    contentless: dict[str, tuple[bool, ...]]
    """By kind, for the same images: whether the image has no content by the rule of `images.content`."""
    repeats: tuple[tuple[float, ...], ...]
    """One row per image that was scored several times."""
    sent: dict[str, tuple[float, ...]]
    """The `detail` ladder by transport."""
    ascent: Ascent
    num_asked: int
    """Images that had to have a value."""
    num_failed: int
    """Those of them that had none."""
