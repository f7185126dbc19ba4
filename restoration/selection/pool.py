"""A pool for best-of-N: bicubic, the restorer as it is, and restorations that differ in structure.

Another seed changes only grain, and a judge cannot distinguish such candidates. The members of this pool assume a
different blur of the input (`vary_sharpness`) and, if the restorer has a temperature, a different amount of texture.
Bicubic takes part, so the result shows if nothing beats doing nothing. The restorer as it is takes part, so by the
reward's own measure no choice is worse than the default.
"""

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.evaluation.measuring import bicubic
from restoration.restorer.image_io import SharpnessRange, sharpness_range
from restoration.restorer.loading import RestorerSource, is_pipeline, load_pipeline
from restoration.restorer.restorer import Restorer

BICUBIC = "bicubic"
"""Name in results of the candidate that is only enlarged."""
VARY_SHARPNESS = 0.5
"""Largest sharpness, in either direction, of the varied candidates of a restorer without a temperature."""
TEMPERATURES = (0.0, 0.25)
SHARPER = (0.0, 0.5)
"""Temperatures and sharpness of the embedded restorer's varied candidates. Less texture and a sharper input together
are nearer to the truth than the default under FSIM and VIF; a softer input is not. Chosen on photographs outside of
all tables (docs/notes/selection.md)."""
POOL_SIZE = 8


def doing_nothing(scale: int) -> Restorer:
    """Return bicubic enlargement as a deterministic restorer, `scale` times as large."""

    def enlarged(image: Tensor) -> Tensor:
        return bicubic(image, scale)

    return Restorer.from_pretrained(enlarged, name=BICUBIC, scale=scale, fingerprint=f"bicubic x{scale}")


def varied_pool(
    source: RestorerSource = "nano", *, vary_sharpness: SharpnessRange | None = None, size: int = POOL_SIZE,
    **options: object,
) -> list[Restorer]:  # fmt: skip
    """Return `size` restorers for `best_of_n`: `source` as it is, bicubic, then varied ones.

    source, options: as in `Restorer.from_pretrained`; a pipeline is loaded once. If the pipeline takes `temperature`,
    that is varied too, unless the options set it. vary_sharpness: as there; by default `SHARPER` for a pipeline that
    takes a temperature, as the embedded one does, and `VARY_SHARPNESS` for others. With `n=size` every member is drawn
    once. Raises ValueError for a size below 3, for no variation, and for an unknown scale; also the exceptions of
    loading.
    """
    if size < 3:
        raise ValueError(f"size={size}: must be at least 3, for the restorer, bicubic and a varied one")
    given: dict[str, Any] = options
    if isinstance(source, str | Path):
        given = {"name": Path(source).name, "device": _device()} | {k: v for k, v in options.items() if v is not None}
        source = load_pipeline(source, dtype=given.get("dtype"))
    plain = Restorer.from_pretrained(source, **given)
    if plain.scale is None:
        raise ValueError(f"scale=None: {plain.name} does not say how many times it enlarges; pass scale=4")
    has_temperature = is_pipeline(source) and "temperature" in inspect.signature(type(source).__call__).parameters
    if vary_sharpness is None:
        vary_sharpness = SHARPER if has_temperature else VARY_SHARPNESS
    low, high = sharpness_range(vary_sharpness)
    if low == high:
        raise ValueError(
            f"vary_sharpness={vary_sharpness}: a varied pool needs a range; pass a single Restorer instead"
        )
    settings: list[dict[str, Any]] = [{}]
    if has_temperature and "temperature" not in given:
        settings = [{"temperature": setting} for setting in TEMPERATURES]
    varied = []
    for setting in settings:
        name = " ".join([plain.name, "varied", *(f"T {value:g}" for value in setting.values())])
        changes = {"name": name, "vary_sharpness": vary_sharpness} | setting
        varied.append(Restorer.from_pretrained(source, **(given | changes)))
    return [plain, doing_nothing(plain.scale), *(varied[k % len(varied)] for k in range(size - 2))]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def merge_pools(pools: list[list[Restorer]]) -> list[Restorer]:
    """Return one pool of several, in turns, with bicubic once."""
    members = [restorer for row in zip(*pools, strict=True) for restorer in row]
    first = next(restorer for restorer in members if restorer.name == BICUBIC)
    return [restorer for restorer in members if restorer.name != BICUBIC or restorer is first]
