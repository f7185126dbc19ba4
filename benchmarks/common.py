"""What the benchmark scripts share: statistics with bootstrap intervals, and result files that name their command."""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from scipy.stats import spearmanr

from zoomiqa_reward.model.views import VIEWS_RULE
from zoomiqa_reward.protocol.spec import PROTOCOL_FILE, Protocol
from zoomiqa_reward.runs import bootstrap as runs_bootstrap

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WEIGHTS = {
    "judge": "zoomiqa_reward/checkpoints/nano/model.safetensors",
    "restorer": "restoration/checkpoints/nano/unet/diffusion_pytorch_model.safetensors",
}
"""The embedded weights that figures are of."""


def weights() -> dict[str, str]:
    """Return the first 16 digits of the SHA-256 of each embedded weight file; of the judge, also of how it reads.

    `box_margin` is left out: no rating depends on it. So is `retries`: what can be read at once does not depend on it.
    """
    found = {name: hashlib.sha256((ROOT / file).read_bytes()) for name, file in WEIGHTS.items()}
    protocol = Protocol.load((ROOT / WEIGHTS["judge"]).with_name(PROTOCOL_FILE))
    found["judge"].update((replace(protocol, box_margin=0.0, retries=0).to_json() + str(VIEWS_RULE)).encode())
    return {name: value.hexdigest()[:16] for name, value in found.items()}


def srcc(a: Sequence[float] | NDArray[Any], b: Sequence[float] | NDArray[Any]) -> float:
    """Return Spearman's rank correlation; NaN pairs are an error, not a silent omission."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("NaN in a correlation: count failures before calling")
    return float(spearmanr(a, b).statistic)


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], count: int, *, draws: int = 1000) -> list[float]:
    """Return the 2.5 and 97.5 percentiles of `statistic(indices)` over resampled indices 0..count-1."""
    found = runs_bootstrap.bootstrap(lambda chosen: {"value": statistic(chosen)}, np.arange(count), draws=draws)
    return list(found["value"])


def write_result(name: str, result: dict[str, Any], *, show: bool = True) -> None:
    """Write `results/<name>.json` with command, versions and weights, and print it unless `show` is False."""
    result = {
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *_without_paths(sys.argv[1:])]),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "weights": weights(),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if show:
        print(json.dumps(result, indent=1))


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Paths outside the project say nothing elsewhere: their last parts do."""
    return ["DIR/" + Path(a).name if a.startswith(("/", "../")) else a for a in arguments]
