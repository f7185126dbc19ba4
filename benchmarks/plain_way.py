"""The plain way that the fast passes are measured against: transformers' own, everything recomputed."""

from collections.abc import Sequence

import torch

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.generate import Completion, Sampling, end_tokens, plain_new_ids
from zoomiqa_reward.model.inputs import TokenRow


@torch.no_grad()
def plain_write(checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling) -> list[Completion]:
    """Return one answer for each row: left-padded batches through `generate`, each row with its own images."""
    ends = end_tokens(checkpoint)
    answers = []
    for tokens in plain_new_ids(checkpoint, rows, sampling):
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        text = checkpoint.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append(Completion(text=text, is_truncated=end == len(tokens)))
    return answers
