"""Soft targets for numbers that a language model writes digit by digit.

One hot digit says that 3.49 and 3.50 have nothing in common. Here a number's text is drawn from a bell around the
true value, and each character's target is the exact distribution of the next character given those before it: the
trie of all two-decimal numbers, walked along one path. Averaged over draws this is the cross-entropy of the whole
bell over the leaves.
"""

import numpy as np
from numpy.typing import NDArray

RATINGS = tuple(f"{value / 100:.2f}" for value in range(100, 501))
FRACTIONS = tuple(f"{value / 100:.2f}" for value in range(0, 101))


def bell(texts: tuple[str, ...], value: float, sigma: float) -> NDArray[np.float64]:
    """Return probabilities of `texts` (numbers) proportional to a Gaussian about `value`.

    >>> bell(("1.00", "2.00"), 1.5, 0.3).tolist()
    [0.5, 0.5]
    """
    numbers = np.array([float(text) for text in texts])
    logits = -((numbers - value) ** 2) / (2 * sigma**2)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def draw_path(
    texts: tuple[str, ...], probabilities: NDArray[np.float64], rng: np.random.Generator
) -> tuple[str, list[dict[str, float]]]:
    """Return a drawn text and, for each of its characters, the distribution over characters given those before.

    >>> text, steps = draw_path(("1.0", "2.0"), np.array([0.25, 0.75]), np.random.default_rng(0))
    >>> steps[0], steps[1]
    ({'1': 0.25, '2': 0.75}, {'.': 1.0})
    """
    chosen = texts[int(rng.choice(len(texts), p=probabilities))]
    alive, steps = np.ones(len(texts), dtype=bool), []
    for k, character in enumerate(chosen):
        step: dict[str, float] = {}
        total = probabilities[alive].sum()
        for index in np.flatnonzero(alive):
            other = texts[index][k]
            step[other] = step.get(other, 0.0) + float(probabilities[index] / total)
        steps.append(step)
        alive &= np.array([text[k] == character for text in texts])
    return chosen, steps
