"""Soft targets for numbers that a language model writes digit by digit.

One hot digit says that 3.49 and 3.50 have nothing in common. Here a number's text is drawn from a bell around the
true value, and each digit's target is the exact distribution of the next digit given those before it: the trie of
all two-decimal numbers, walked along one path. Averaged over draws this is the cross-entropy of the whole bell over
the leaves.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def bell(values: Tensor, centres: Tensor, sigma: Tensor | float) -> Tensor:
    """Return (B, values): probabilities of `values` proportional to a Gaussian about each of the B centres.

    >>> bell(torch.tensor([1.0, 2.0]), torch.tensor([1.5]), 0.3).tolist()
    [[0.5, 0.5]]
    """
    return torch.softmax(-0.5 * ((values[None] - centres[:, None]) / sigma) ** 2, dim=1)


def digit_targets(centres: Tensor, hundredths: Tensor, is_box: Tensor, sigma: Tensor) -> Tensor:
    """Return (3, B, 10): for each digit of d.dd its distribution given the digits drawn before.

    centres (B,), sigma (B,): the bell; hundredths int64 (B,): the drawn number; is_box bool (B,): a share 0.00 .. 1.00
    instead of a rating 1.00 .. 5.00.
    """
    leaves = torch.arange(501, device=centres.device)
    allowed = torch.where(is_box[:, None], leaves[None] <= 100, leaves[None] >= 100)
    logits = -0.5 * ((leaves[None] / 100 - centres[:, None]) / sigma[:, None]) ** 2
    weights = torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=1)
    targets = []
    for unit, above in ((100, None), (10, 100), (1, 10)):
        alive = weights
        if above is not None:
            alive = weights * (leaves[None] // above == (hundredths // above)[:, None])
        sums = alive @ one_hot(leaves // unit % 10, 10).to(weights.dtype)
        targets.append(sums / sums.sum(1, keepdim=True).clamp_min(1e-12))
    return torch.stack(targets)
