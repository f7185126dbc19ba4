"""A pool worth choosing from: doing nothing, the restorer as it is, and restorations that differ in structure.

Another noise changes grain alone, and a judge cannot tell such candidates apart. These differ in how blurred their
restorer took the input to be (`vary_sharpness`), and, where the restorer has a temperature, in how much texture they
have. Bicubic takes part, so that a choice that is no better than doing nothing says so; the restorer as it is takes
part, so that no choice is worse than it by the reward's own measure.
"""

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.evaluation.measuring import bicubic
from restoration.restorer.loading import is_pipeline, load_pipeline
from restoration.restorer.restorer import Restorer

BICUBIC = "bicubic"
"""What results call the candidate that does nothing but enlarge."""
VARY_SHARPNESS = 0.5
TEMPERATURES = (0.0, 0.5, 1.0)
"""Of the embedded restorer's varied candidates. Both were chosen on held-out photographs (docs/notes/restorer.md)."""
POOL_SIZE = 8


def doing_nothing(scale: int) -> Restorer:
    """Return bicubic as a restorer: deterministic, `scale` times as large."""

    def enlarged(image: Tensor) -> Tensor:
        return bicubic(image, scale)

    return Restorer.from_pretrained(enlarged, name=BICUBIC, scale=scale, fingerprint=f"bicubic x{scale}")


def varied_pool(
    source: Any = "nano", *, vary_sharpness: float = VARY_SHARPNESS, size: int = POOL_SIZE, **options: Any
) -> list[Restorer]:
    """Return `size` restorers for `best_of_n`: of `source` as it is, bicubic, then varied ones.

    source, options: as `Restorer.from_pretrained` takes them; a pipeline is loaded once. A pipeline that takes
    `temperature` is varied in it as well, unless a temperature is among the options. With `n=size` every member is
    drawn once. Raises ValueError for a size below 3, no variation, or a scale that is not known; what loading raises.
    """
    if size < 3 or not 0 < vary_sharpness <= 1:
        raise ValueError(f"size={size}, vary_sharpness={vary_sharpness}: at least 3, and above 0 up to 1")
    if isinstance(source, str | Path):
        options = {"name": Path(source).name, "device": _device()} | {k: v for k, v in options.items() if v is not None}
        source = load_pipeline(source, dtype=options.get("dtype"))
    plain = Restorer.from_pretrained(source, **options)
    if plain.scale is None:
        raise ValueError(f"scale=None: {plain.name} does not say how many times it enlarges; pass scale=4")
    settings: list[dict[str, Any]] = [{}]
    if "temperature" not in options and is_pipeline(source):
        takes = "temperature" in inspect.signature(type(source).__call__).parameters
        settings = [{"temperature": one} for one in TEMPERATURES] if takes else settings
    varied = []
    for one in settings:
        name = " ".join([plain.name, "varied", *(f"T {value:g}" for value in one.values())])
        changes = {"name": name, "vary_sharpness": vary_sharpness} | one
        varied.append(Restorer.from_pretrained(source, **(options | changes)))
    return [plain, doing_nothing(plain.scale), *(varied[k % len(varied)] for k in range(size - 2))]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def merge_pools(pools: list[list[Restorer]]) -> list[Restorer]:
    """Return one pool of several, in turns, with bicubic once."""
    members = [one for row in zip(*pools, strict=True) for one in row]
    first = next(one for one in members if one.name == BICUBIC)
    return [one for one in members if one.name != BICUBIC or one is first]
