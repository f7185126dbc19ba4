"""Any reward in the call form of TRL's GRPOTrainer: `reward_funcs=[TRLReward(reward, image_of)]`.

TRL trains models that write text. `image_of` makes the image of a completion: decoded image tokens, the output of the
restoration that the text plans, or the image in an environment.
Source of the form: trl 1.16, `GRPOTrainer._calculate_rewards` (lists of equal length and `log_metric`; None for a
completion that this reward does not apply to, which TRL then leaves out). Beside other reward functions TRL adds up
those that are there, so None counts as 0: train with `multi_objective_aggregation="normalize_then_sum"` then.
"""

from collections.abc import Callable, Mapping

from zoomiqa_reward.images.loading import ImageSource
from zoomiqa_reward.integrations.batches import score_batch
from zoomiqa_reward.rewards.base import Reward, require_pointwise

ImageOf = Callable[[object, Mapping[str, object]], ImageSource | None]
"""`image_of(completion, row)`."""


class TRLReward:
    """A reward function for TRL; `__name__`, under which TRL logs it, is the reward's name.

    It can be pickled if the reward and `image_of` can.
    """

    def __init__(
        self, reward: Reward, image_of: ImageOf, *, lq_key: str = "lq", hr_key: str = "hr",
        no_image: float | None = None,
    ) -> None:  # fmt: skip
        """Measure with `reward` the images that `image_of(completion, row)` returns.

        completion: as TRL passes it: a text, or a list of messages. row: the columns of its data set's row, and
        `prompt`, `completion_ids` and, if the trainer has environments, `environment`. lq_key and hr_key: columns that
        hold the low-quality image and the reference, if the reward needs them.
        no_image: the value where `image_of` returns None. With None the completion is left out, so the
        policy loses nothing by it: if each completion must lead to an image, give a number at the bottom of the scale.
        Raises GroupwiseError for a reward that compares images within a group: TRL normalises groups itself.
        """
        require_pointwise(reward, "TRL adds up values and compares them within its own groups")
        self.reward, self.image_of, self.no_image = reward, image_of, no_image
        self.lq_key, self.hr_key = lq_key, hr_key
        self.__name__ = reward.name

    def __call__(
        self, prompts: list[object], completions: list[object], completion_ids: list[object] | None = None,
        log_metric: Callable[[str, float], None] | None = None, environments: list[object] | None = None,
        **columns: object,
    ) -> list[float | None]:  # fmt: skip
        """Return one value per completion, higher is better; None where an image could not be measured.

        `NAME/failed` and `NAME/no_image` are logged as shares of the batch.
        """
        count = len(completions)
        columns |= {"prompt": prompts, "completion_ids": completion_ids, "environment": environments}
        lists = {key: value for key, value in columns.items() if isinstance(value, list) and len(value) == count}
        rows = [{key: value[index] for key, value in lists.items()} for index in range(count)]
        images = [self.image_of(completion, row) for completion, row in zip(completions, rows, strict=True)]
        shown = [index for index, image in enumerate(images) if image is not None]
        values: list[float | None] = [self.no_image] * count
        failed = 0
        if shown:
            texts = [_text(prompts[index]) for index in shown]
            scores = score_batch(
                self.reward, [images[index] for index in shown], texts, [rows[index] for index in shown],
                lq_key=self.lq_key, hr_key=self.hr_key,
            )  # fmt: skip
            for index, value, valid in zip(shown, scores.value.tolist(), scores.valid.tolist(), strict=True):
                values[index] = value if valid else None
            failed = int((~scores.valid).sum())
        if log_metric is not None and count:
            log_metric(f"{self.__name__}/failed", failed / count)
            log_metric(f"{self.__name__}/no_image", (count - len(shown)) / count)
        return values


def _text(prompt: object) -> str:
    """Return the text of a prompt, or of the last message of a conversation."""
    if not isinstance(prompt, list) or not prompt:
        return str(prompt)
    content = prompt[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(item["text"] for item in content if item.get("type") == "text")
