"""Zoom-IQA and every other reward as a reward model of Flow-Factory, named in its YAML file by its dotted path.

    rewards:
      - name: zoomiqa
        reward_model: zoomiqa_reward.integrations.flow_factory.ZoomIQARewardModel
        weight: 1.0
        batch_size: 8
        model: nano                # or any reward: a folder, a hub id, a metric, package.module:factory
        together: conditioned      # with the low-quality image; or referenced; leave out for the rating alone
        on_invalid: raise          # nan: the sample's reward is NaN

The low-quality image of a sample is the file in the data set's row under `lq`, else its first condition image. Adapters
may enlarge condition images, beside which `conditioned` takes detail for unfaithful: name the file then.
The file of its reference, for a reward that needs one, stands in the row under `hr` (option `hr_key`). Flow-Factory
passes the row on as JSON. It groups samples by
their condition images and normalises by itself. It has no missing values: a NaN would spread over the batch, so
`raise` is the default.
Source of the form: X-GenGroup/Flow-Factory (May 2026), `rewards/abc.py`, `registry.py`, `loader.py`,
`reward_processor.py`.
"""

import json
from collections.abc import Sequence

from torch import Tensor

from zoomiqa_reward.integrations.batches import check_on_invalid, require_valid, score_batch
from zoomiqa_reward.integrations.named import named_reward
from zoomiqa_reward.rewards.base import require_pointwise

try:
    from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput
except ImportError as error:
    raise ImportError(
        f"zoomiqa_reward.integrations.flow_factory needs Flow-Factory ({error}): install it from its repository, "
        "X-GenGroup/Flow-Factory"
    ) from error


class ZoomIQARewardModel(PointwiseRewardModel):  # type: ignore[misc] # Flow-Factory has no types
    """One value per sample. Images arrive as float tensors, not rounded to 8 bits."""

    required_fields = ("image", "prompt")
    use_tensor_inputs = True

    def __init__(self, config: object, accelerator: object) -> None:
        """Load the reward that `config.extra_kwargs` names: `model`, `mode`, `together`, `hr_key` and
        `on_invalid`.

        Raises ValueError for an unknown option and for a reward that compares images within a group.
        """
        super().__init__(config, accelerator)
        options = dict(getattr(config, "extra_kwargs", None) or {})
        name, mode = str(options.pop("model", "nano")), str(options.pop("mode", "direct"))
        self.on_invalid = str(options.pop("on_invalid", "raise"))
        self.hr_key = str(options.pop("hr_key", "hr"))
        together = options.pop("together", None)
        if options:
            raise ValueError(
                f"reward option {sorted(options)[0]!r}: must be model, mode, together, hr_key or on_invalid"
            )
        check_on_invalid(self.on_invalid)
        self.reward = named_reward(name, mode, str(self.device), together)
        require_pointwise(self.reward, "Flow-Factory normalises within groups itself")

    def __call__(
        self, prompt: list[str], image: list[Tensor] | None = None,
        condition_images: Sequence[Sequence[Tensor] | Tensor] | None = None,
        metadata: list[str] | None = None, **_: object,
    ) -> RewardModelOutput:  # fmt: skip
        """Return RewardModelOutput(rewards [batch] float32, extra_info with `valid`, `std` and `errors`).

        image: CHW tensors in [0, 1]. condition_images: per sample its condition images; the first is `lq` unless the
        row names one. metadata: per sample a JSON object with the other columns of its row.
        Raises ValueError for samples without an image, RuntimeError for an image that cannot be measured (`raise`).
        """
        if image is None:
            raise ValueError(
                "ZoomIQARewardModel rates images; these samples hold none (videos and audio are not rated)"
            )
        rows = [{} for _ in image] if metadata is None else [json.loads(text) for text in metadata]
        for row, conditions in zip(rows, condition_images or [()] * len(image), strict=True):
            if row.get("lq") is None and len(conditions):
                row["lq"] = _exact(conditions[0])
        scores = score_batch(
            self.reward, [_exact(tensor) for tensor in image], prompt, rows, lq_key="lq", hr_key=self.hr_key
        )  # fmt: skip
        if self.on_invalid == "raise":
            require_valid(self.reward, scores)
        info = {"valid": scores.valid.cpu(), "std": scores.std.cpu(), "errors": list(scores.errors)}
        return RewardModelOutput(rewards=scores.value.float().cpu(), extra_info=info)


def _exact(image: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, which holds its pixels exactly."""
    return image.float()
