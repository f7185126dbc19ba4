"""A reward in the call form of verl-omni's visual reward manager: `compute_score`, named in its configuration.

    reward.custom_reward_function.path=pkg://zoomiqa_reward.integrations.verl_omni
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.model=nano

or one of several in `reward.reward_functions`, with `required: true`: without it verl-omni turns every error of a
reward into the value 0, the same as a measured one. Pixels arrive as uint8 CHW. Groups are verl-omni's own.
Source of the form: verl-project/verl-omni, `reward_loop/reward_manager/visual.py` and `multi.py` (August 2026), and
verl 0.9.1, `utils/import_utils.py` (`pkg://`).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.integrations.batches import check_on_invalid, require_valid, score_batch
from zoomiqa_reward.integrations.named import named_reward, refuse_misspelt
from zoomiqa_reward.rewards.base import require_pointwise

OPTIONS = ("model", "mode", "device", "together", "lq_key", "hr_key", "on_invalid")


def compute_score(
    data_source: str,
    solution_image: Tensor | NDArray[np.uint8],
    ground_truth: str,
    extra_info: Mapping[str, object] | None = None,
    *,
    model: str = "nano",
    mode: str = "direct",
    device: str | None = None,
    together: str | None = None,
    lq_key: str = "source_img",
    hr_key: str = "target_img",
    on_invalid: str = "raise",
    **others: object,
) -> dict[str, float]:
    """Return {"score": value, "std": its standard deviation} of one image; higher is better.

    solution_image: uint8 CHW, or 1CHW. ground_truth: the prompt, for a reward that needs one. extra_info: holds the
    low-quality image and the reference under `lq_key` and `hr_key`, if the reward needs them. model: a Zoom-IQA model
    or any reward by name, as `named_reward` takes it; loaded once per process.
    together: `conditioned` judges the image together with its low-quality image, `referenced` with its reference.
    on_invalid: `raise` raises RuntimeError for an image that cannot be measured; `nan` gives NaN. others: what else
    verl-omni passes, which is not looked at. Raises ValueError for another layout, a video, a missing input, a reward
    that compares images in groups, and a misspelt option.
    """
    del data_source
    refuse_misspelt(others, OPTIONS)
    check_on_invalid(on_invalid)
    reward = named_reward(model, mode, device, together)
    require_pointwise(reward, "verl-omni asks for one image at a time")
    image = _channels_last(solution_image)
    scores = score_batch(
        reward, image[None], [ground_truth], [dict(extra_info or {})], lq_key=lq_key, hr_key=hr_key
    )  # fmt: skip
    if on_invalid == "raise":
        require_valid(reward, scores)
    valid = bool(scores.valid[0])
    return {"score": float(scores.value[0]) if valid else math.nan, "std": float(scores.std[0])}


def _channels_last(image: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.asarray(image))
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"solution_image is {pixels.dtype} of shape {tuple(pixels.shape)}: must be uint8 CHW with 1 or 3 channels "
            "(one image, no video, no latent)"
        )
    channels_last: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return channels_last
