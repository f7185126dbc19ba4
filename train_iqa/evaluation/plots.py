"""Images of a data set's result: ratings against MOS, and errors against the model's own standard deviation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train_iqa.evaluation.correlations import isotonic_fit
from zoomiqa_reward.runs.outputs import SOFTWARE, replacing

_DPI = 120
_LIMITS = (0.9, 5.1)


def scatter_plot(ratings: Sequence[float], mos: Sequence[float], title: str, path: Path) -> None:
    """Write a PNG: one point per image, the diagonal, and the isotonic fit; `title` should hold the numbers."""
    x, y = np.asarray(ratings, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(_LIMITS, _LIMITS, color="0.6", linewidth=1, label="rating = MOS")
    axes.scatter(x, y, s=max(2.0, 60.0 / max(len(x), 1) ** 0.4), alpha=0.4, linewidths=0)
    if len(x) >= 2:
        order = np.argsort(x)
        axes.step(x[order], isotonic_fit(x, y)[order], where="mid", color="tab:red", linewidth=1, label="isotonic fit")
    axes.set(xlim=_LIMITS, ylim=_LIMITS, xlabel="rating", ylabel="MOS, 1..5", title=title, aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


def calibration_plot(calibration: dict[str, Any], title: str, path: Path) -> None:
    """Write a PNG: root mean square error over std by bin; calibrated bins lie on the diagonal."""
    bins = calibration["bins"]
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    stds, errors = [bin_["std"] for bin_ in bins], [bin_["rmse"] for bin_ in bins]
    top = 1.05 * max([*stds, *errors, 1e-6])
    axes.plot((0, top), (0, top), color="0.6", linewidth=1, label="calibrated")
    axes.plot(stds, errors, marker="o", label="bins of equal size")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="std of the rating", ylabel="rms of rating - MOS", title=title)
    axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as half:
        figure.savefig(half, format="png", dpi=_DPI, metadata={"Software": SOFTWARE})
