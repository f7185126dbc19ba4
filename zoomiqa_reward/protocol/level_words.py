"""`level-words`: a protocol for models that answer with one of five words, bad to excellent.

The rating is the mean of the words' values 1 .. 5, weighted by the probabilities of the words alone.
Source: Q-Align (Wu et al. 2024) for the five levels and the reading; Q-ReAlign reads in the same way. The sentences are
this project's own. A checkpoint that was trained on others gives its best ratings with those: put them into a protocol
file with `levels`, and pass that.
"""

from dataclasses import replace

from zoomiqa_reward.protocol.spec import Prompt, Protocol, ViewPolicy

LEVEL_WORDS = "level-words"
"""Name of the protocol, also as `protocol=` and `--protocol`."""
LEVELS = ("bad", "poor", "fair", "good", "excellent")


def level_words(question: str | None = None, *, views: ViewPolicy | None = None) -> Protocol:
    """Return the protocol. question: in place of its own. views: by default the whole image, read once."""
    protocol = Protocol(
        name=LEVEL_WORDS,
        round1=Prompt(text="{question}"),
        round2=Prompt(text="{question}"),
        questions=(
            "Look at the sharpness, the noise and the artefacts of this image. Which word fits its technical quality "
            f"best: {', '.join(LEVELS[:-1])} or {LEVELS[-1]}?",
        ),
        direct_prefix="The technical quality of this image is ",
        levels=LEVELS,
        image_order="image_first",
        views=views or ViewPolicy.whole(),
    )
    return protocol if question is None else replace(protocol, questions=(question,))
