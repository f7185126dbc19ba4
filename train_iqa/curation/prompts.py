"""What teacher and judge are asked, in words of our own; a file may replace any of them.

The teacher knows people's opinion score, so that its rationale explains the right rating. Its continuations, with and
without the image, both do not know it: they get the same words. A teacher that is itself a Zoom-IQA model is asked with
its own protocol instead.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from train_iqa.curation.hints import ImageHints
from train_iqa.curation.thresholds import HintThresholds
from train_iqa.curation.written import Written
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.turns import Prompted, round1, round2
from zoomiqa_reward.protocol import Protocol
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

Messages = list[dict[str, Any]]

_FORM = """Write the reasoning inside <think> and </think>, in exactly these labelled parts, each on a line of its own:
{labels}
After </think> write one line and nothing else:
<answer>{{"bbox_2d": [x1, y1, x2, y2], "rating": r, "tool": "{tools}"}}</answer>
Coordinates are shares of the width and height between 0 and 1 with two decimals, the rating has two decimals."""

SYSTEM = """You assess the technical quality of photographs: focus, noise, compression, light, contrast, colour. What is
depicted and whether it is beautiful plays no part. State only what can be seen in the picture, and tie each statement
to a place in it. Short declarative sentences, one observation each."""

ROUND1 = """Here is a photograph. People rated it {mos:.2f} on a scale from 1.00 (bad) to 5.00 (excellent). Let your
analysis lead to a rating close to this one; do not mention that you were told, and name no rating, no coordinates and
no overall grade before the last part.
The first part describes the visible quality. The second only says what an improved picture would have, where. The third
only names the faults, where. The last part weighs them and decides: if one region must be seen enlarged before you
commit yourself, name its box with the tool "crop"; if not, write four zeros with the tool "final".
{form}"""

ROUND2 = """You asked for a closer look. Below are the whole photograph and the enlarged region. People rated it
{mos:.2f}; the same rules hold. Begin with what the enlargement shows, then improvements, then faults, then confirm or
correct your rating. Write four zeros and the tool "final".
Your first analysis was:
{answer}
{form}"""

CONTINUE = """Below is the beginning of an analysis of a photograph. The photograph itself may or may not be shown. Go
on from there: write only the last part and the answer. Where nothing settles a value, give your best guess; do not
refuse.
{form}
The analysis begins:
{partial}"""

JUDGE = """Numbers were measured on a photograph and put into words. A text about the same photograph follows, one
sentence a line. Decide for each sentence whether it agrees with the measurements. Words for what a measurement shows
may differ.
"contradiction": the sentence asserts or denies something that a measurement clearly speaks against. "match": a
measurement supports it. "unclear": no measurement speaks about it, or the measurement says "perhaps". Sentences under
"Directions for Improvement" are wishes: judge only the faults that they presuppose.
Measured on the whole photograph: {whole}
Measured on {region}: {box}
Sentences:
{sentences}
Reply with one JSON object only: {{"sentences": [{{"number": 1, "verdict": "match", "why": "a few words"}}, ...]}}"""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The texts; each is filled by `str.format` with the names that its default holds."""

    system: str = SYSTEM
    round1: str = ROUND1
    round2: str = ROUND2
    continuation: str = CONTINUE
    judge: str = JUDGE

    def __post_init__(self) -> None:
        values: Mapping[str, Any] = {
            "mos": 1.0, "form": "", "answer": "", "partial": "", "whole": "", "region": "", "box": "", "sentences": "",
        }  # fmt: skip
        for name in ("round1", "round2", "continuation", "judge"):
            try:
                getattr(self, name).format(**values)
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"prompt {name}: may only hold {sorted(values)} in braces: {error!r}") from error


def form_text(labels: Sequence[str], tools: str) -> str:
    """Return the part of a prompt that lays down the answer's form."""
    return _FORM.format(labels="\n".join(f"{label}: ..." for label in labels), tools=tools)


def ask_round1(prompts: Prompts, image: Tensor, mos: float, max_pixels: int) -> Messages:
    """Return the request for round 1's answer."""
    text = prompts.round1.format(mos=mos, form=form_text(ROUND1_SECTIONS, "crop or final"))
    return [_system(prompts), _user(text, image_url(image, max_pixels))]


def ask_round2(prompts: Prompts, image: Tensor, crop: Tensor, answer: str, mos: float, max_pixels: int) -> Messages:
    """Return the request for round 2's answer, which quotes what was kept of round 1."""
    text = prompts.round2.format(mos=mos, answer=answer, form=form_text(ROUND2_SECTIONS, "final"))
    return [_system(prompts), _user(text, image_url(image, max_pixels), image_url(crop, max_pixels))]


def ask_continuation(prompts: Prompts, written: Written, images: Sequence[Tensor], max_pixels: int) -> Messages:
    """Return the request to go on from the beginning of an answer about `images`; the score is not told."""
    labels = [label for label, _ in written.sections]
    tools = "crop or final" if tuple(labels) == ROUND1_SECTIONS else "final"
    text = prompts.continuation.format(partial=written.partial(), form=form_text(labels[-1:], tools))
    return [_system(prompts), _user(text, *(image_url(image, max_pixels) for image in images))]


def ask_judge(
    prompts: Prompts, thresholds: HintThresholds, written: Written, hints: ImageHints, *, is_crop: bool
) -> Messages:
    """Return the request for a model's verdicts."""
    lines = [
        f"{number}. ({written.sections[index][0]}) {sentence}"
        for number, (index, sentence) in enumerate(written.sentences, 1)
    ]
    text = prompts.judge.format(
        whole=_in_words(thresholds, hints.whole),
        box="nothing" if hints.box is None else _in_words(thresholds, hints.box),
        region="the enlarged region that the text describes" if is_crop else "the region that the text names",
        sentences="\n".join(lines),
    )
    return [_user(text)]


def ask_protocol(protocol: Protocol, image: Tensor, max_pixels: int) -> Messages:
    """Return round 1 as a Zoom-IQA model is asked; it is not told the opinion score."""
    return _as_chat(round1(protocol, image), max_pixels)


def ask_protocol2(protocol: Protocol, image: Tensor, crop: Tensor, answer: str, max_pixels: int) -> Messages:
    """Return round 2 as a Zoom-IQA model is asked."""
    return _as_chat(round2(protocol, image, crop, answer), max_pixels)


def begun(messages: Messages, written: Written) -> Messages:
    """Return a Zoom-IQA model's own question with the reasoning of an answer quoted as begun."""
    return [*messages, {"role": "assistant", "content": f"<think>\n{written.partial()}\n"}]


def without_images(messages: Messages) -> Messages:
    """Return the same request without its images: nothing else differs."""
    return [
        {**message, "content": [item for item in message["content"] if item["type"] != "image_url"]}
        if isinstance(message["content"], list) else message
        for message in messages
    ]  # fmt: skip


def image_url(image: Tensor, max_pixels: int) -> str:
    """Return a PNG data URL of a float CHW image: lossless, for the damage itself is to be judged.

    An image of more than `max_pixels` is reduced to it (Lanczos), which hides fine noise.
    """
    pil_image = to_pil(image)
    if pil_image.width * pil_image.height > max_pixels:
        scale = math.sqrt(max_pixels / (pil_image.width * pil_image.height))
        size = max(1, int(pil_image.width * scale)), max(1, int(pil_image.height * scale))
        pil_image = pil_image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pil_image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _in_words(thresholds: HintThresholds, hints: Any) -> str:
    words = thresholds.words(hints)
    return ", ".join(f"{name} {getattr(hints, name):.3g} ({word})" for name, word in words.items())


def _system(prompts: Prompts) -> dict[str, Any]:
    return {"role": "system", "content": prompts.system}


def _user(text: str, *urls: str) -> dict[str, Any]:
    if not urls:
        return {"role": "user", "content": text}
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def _as_chat(prompted: Prompted, max_pixels: int) -> Messages:
    urls = iter([image_url(image, max_pixels) for image in prompted.images])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": next(urls)}} if item["type"] == "image" else dict(item)
                for item in message["content"]
            ],
        }
        for message in prompted.messages
    ]
