"""All quality metrics by name in `METRICS`: what each needs, which direction is better, and whether it may judge.

The functions take CHW tensors in [0, 1] and return floats; nothing is downloaded at run time. HaarPSI and MDSI may make
the training labels of embedded models (`is_label_metric`). FSIM, VIF, PSNR-Y and SSIM-Y are held out, so they judge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from restoration.metrics.fidelity import (
    BORDER_PX,
    LR_BORDER_PX,
    LR_CONSISTENCY_CAP_DB,
    PSNR_CAP_DB,
    MetricUnavailable,
    fsim,
    haarpsi,
    lr_consistency,
    mdsi,
    psnr_y,
    ssim_y,
    vif,
)
from restoration.metrics.perceptual import backbone_hash, lpips, niqe
from zoomiqa_reward.images.loading import ImageError, ImageSource, load_image
from zoomiqa_reward.rewards.metric import MetricReward

__all__ = [
    "METRICS", "Measurement", "Metric", "MetricUnavailable", "as_reward", "conventions", "find_metrics",
    "fsim", "haarpsi", "lpips",
    "lr_consistency", "mdsi", "measure", "niqe", "psnr_y", "ssim_y", "vif",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric and its properties."""

    name: str
    fn: Callable[..., float]
    """Takes the image, then the input that `needs` names."""
    higher_is_better: bool
    score_range: tuple[float, float]
    """Smallest and largest value of the metric itself."""
    needs: str | None = None
    """`hr`: the reference, of the same size; `lq`: the low-quality source; None: nothing."""
    is_label_metric: bool = False
    """Whether it made the labels of embedded models; then it cannot judge them."""
    border_px: int = 0
    """Cut from each side before measuring (for `lr_consistency` at the size of the source)."""
    channel: str = "rgb"
    """Channels by default: `rgb`, or `y` for BT.601 luma."""
    options: frozenset[str] = frozenset({"border_px"})
    """Conventions that `measure` takes as options: `border_px` of every metric, `channel` of PSNR and SSIM."""
    library: str | None = None
    """The Python distribution that computes it; None: this one."""
    source: str

    def version(self) -> str:
        """Return the library with its version."""
        name = self.library or "zoomiqa-reward"
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} (not installed)"


BOTH = frozenset({"border_px", "channel"})

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="psnr_y", fn=psnr_y, higher_is_better=True, score_range=(0, PSNR_CAP_DB), needs="hr",
               border_px=BORDER_PX, channel="y", options=BOTH, library="basicsr-fixed",
               source="BasicSR calculate_psnr on BT.601 luma"),
        Metric(name="ssim_y", fn=ssim_y, higher_is_better=True, score_range=(-1, 1), needs="hr", border_px=BORDER_PX,
               channel="y", options=BOTH, library="basicsr-fixed",
               source="Wang et al. 2004; BasicSR calculate_ssim on BT.601 luma"),
        Metric(name="fsim", fn=fsim, higher_is_better=True, score_range=(0, 1), needs="hr", library="piq",
               source="Zhang et al. 2011; piq"),
        Metric(name="vif", fn=vif, higher_is_better=True, score_range=(0, math.inf), needs="hr", library="piq",
               source="Sheikh and Bovik 2006; piq vif_p"),
        Metric(name="lpips", fn=lpips, higher_is_better=False, score_range=(0, math.inf), needs="hr", library="lpips",
               source="Zhang et al. 2018; lpips 0.1, AlexNet"),
        Metric(name="haarpsi", fn=haarpsi, higher_is_better=True, score_range=(0, 1), needs="hr",
               is_label_metric=True, library="piq", source="Reisenhofer et al. 2018; piq"),
        Metric(name="mdsi", fn=mdsi, higher_is_better=False, score_range=(0, math.inf), needs="hr",
               is_label_metric=True, library="piq", source="Nafchi et al. 2016; piq"),
        Metric(name="niqe", fn=niqe, higher_is_better=False, score_range=(0, 100), channel="y", library="basicsr-fixed",
               source="Mittal et al. 2013; BasicSR calculate_niqe"),
        Metric(name="lr_consistency", fn=lr_consistency, higher_is_better=True,
               score_range=(0, LR_CONSISTENCY_CAP_DB), needs="lq", border_px=LR_BORDER_PX, channel="y",
               options=frozenset(),
               source="PSNR-Y of the reduced image against its source, both blurred by 1 px, at most 50 dB"),
    )
}  # fmt: skip


MetricOptions = Mapping[str, Mapping[str, object]]
"""Keyword arguments by metric."""


class Measurement(NamedTuple):
    """One metric of one image."""

    value: float
    """NaN if there is a reason."""
    reason: str | None = None
    """Why it could not be measured."""


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of these names, in order. Raises ValueError for an unknown or repeated name, and for a str."""
    if isinstance(names, str):
        raise ValueError(f"metrics {names!r}: give a list of names, as in [{names!r}]")
    for index, name in enumerate(names):
        if name not in METRICS:
            raise ValueError(f"metric {name!r}: must be among {', '.join(METRICS)}")
        if name in names[:index]:
            raise ValueError(f"metric {name!r} is named twice")
    return [METRICS[name] for name in names]


def measure(
    names: Sequence[str],
    image: ImageSource,
    *,
    lq: ImageSource | None = None,
    hr: ImageSource | None = None,
    options: MetricOptions | None = None,
) -> dict[str, Measurement]:
    """Return a `Measurement` for each name, in order. A metric that cannot be measured has NaN and a reason.

    `image`, `lq`, `hr`: anything that `load_image` takes. `options`: keyword arguments by metric, for example
    `{"lpips": {"weights": FILE}, "lr_consistency": {"blur_px": 0.0}}`. Raises ValueError for unknown names and sizes
    that do not fit, ImageError.
    """
    metrics = find_metrics(names)
    find_metrics(list(options or {}))
    pixels = load_image(image)
    given = {key: None if other is None else load_image(other) for key, other in (("hr", hr), ("lq", lq))}
    return {metric.name: _measure(metric, pixels, given, (options or {}).get(metric.name, {})) for metric in metrics}


def _measure(
    metric: Metric, image: Tensor, given: dict[str, Tensor | None], given_options: Mapping[str, Any]
) -> Measurement:
    other = given[metric.needs] if metric.needs else None
    [image, *others], options = _cut([image, *([] if other is None else [other])], metric, given_options)
    if metric.needs and other is None:
        return Measurement(math.nan, f"{metric.name} needs {metric.needs}, which is not there")
    try:
        value = metric.fn(image, *others, **options)
    except MetricUnavailable as error:
        return Measurement(math.nan, str(error))
    if math.isnan(value):
        return Measurement(math.nan, _undefined(metric, image))
    best = math.inf if metric.higher_is_better else -math.inf
    if value == -best:
        return Measurement(math.nan, f"{metric.name} is infinitely bad")
    if value == best:  # a measurement: the scale's best end, where it has one
        value = metric.score_range[1 if metric.higher_is_better else 0]
    return Measurement(float(value))


def conventions(names: Sequence[str], options: MetricOptions | None = None) -> dict[str, dict[str, Any]]:
    """Return the border and the channel that each metric measures with under these options."""
    table = {}
    for metric in find_metrics(names):
        given = (options or {}).get(metric.name, {})
        table[metric.name] = {
            "border_px": given.get("border_px", metric.border_px), "channel": given.get("channel", metric.channel)
        }  # fmt: skip
    return table


def _cut(images: list[Tensor], metric: Metric, options: Mapping[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Return what the metric's function gets: some cut the border themselves, for the others it is cut here."""
    options = dict(options)
    if metric.options == {"border_px"} and (border := options.pop("border_px", 0)):
        images = [_inner(image, border) for image in images]
    return images, options


def _inner(image: Tensor, border_px: int) -> Tensor:
    height, width = image.shape[1:]
    if border_px < 0 or min(height, width) <= 2 * border_px:
        raise ValueError(f"border_px={border_px}: must be at least 0, and smaller than half of {width} x {height} px")
    return image[:, border_px : height - border_px, border_px : width - border_px].contiguous()


def _undefined(metric: Metric, image: Tensor) -> str:
    return f"{metric.name} is not defined for this image of {image.shape[2]} x {image.shape[1]} px"


def as_reward(name: str, **options: object) -> MetricReward:
    """Return the metric as a reward where higher is better. `options` go to its function.

    Raises ValueError for an unknown name, MetricUnavailable if the LPIPS backbone is missing.
    """
    [metric] = find_metrics([name])
    needs = [] if metric.needs is None else [metric.needs]
    parts = [metric.name, metric.version(), str(metric.border_px), *(f"{k}={options[k]}" for k in sorted(options))]
    if name == "lpips":
        weights = cast("str | Path | None", options.get("weights"))
        others = (f"{key}={options[key]}" for key in sorted(options) if key != "weights")
        parts = [*parts[:3], backbone_hash(weights), *others]  # what the file holds counts, not where it lies

    def fn(image: Tensor, **given: Tensor) -> float:
        images, others = _cut([image, *(given[key] for key in needs)], metric, options)
        value = float(metric.fn(*images, **others))
        if math.isnan(value):
            raise ImageError(_undefined(metric, image))
        return value

    return MetricReward(
        fn, metric.name, metric.higher_is_better, metric.score_range, needs, fingerprint="|".join(parts)
    )
