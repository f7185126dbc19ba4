"""Answers written from a degradation record, and the tokenizer that is trained on them.

The answers follow the two-round protocol and name the true damage and the true region. Every sentence is derived from
the record, never from a model, so a rationale cannot claim damage that was not done.

The tokenizer of nano has the words of the protocol: prompts, and answers about drawn damage.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from train_iqa.nano.build import build_tokenizer
from train_iqa.nano.degradations import DamageRecord, Step, degrade, sample_box, sample_steps
from train_iqa.nano.labels import LABEL_METRICS
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS, Decoding, Prompt, Protocol, ViewPolicy

DIRECT_PREFIX = '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": '
LEVELS = ("bad", "poor", "fair", "good", "excellent")

# kind -> (what is wrong, what would be right); the second is usable as a positive prompt for a restorer.
WORDS: dict[str, tuple[str, str]] = {
    "gaussian_blur": ("soft blur", "crisp fine detail"),
    "motion_blur": ("motion blur", "steady sharp contours"),
    "defocus_blur": ("defocus blur", "precise focus"),
    "gaussian_noise": ("grainy noise", "clean smooth surfaces"),
    "poisson_noise": ("shot noise", "clean bright areas"),
    "colour_noise": ("colour noise", "pure even colours"),
    "jpeg": ("compression blocks", "smooth gradients"),
    "resample": ("low resolution", "high resolution texture"),
    "pixelation": ("pixelation", "continuous smooth edges"),
    "oversharpen": ("over-sharpened halos", "natural edge transitions"),
    "ringing": ("ringing ripples", "clean edges"),
    "flat": ("flat contrast", "rich contrast"),
    "harsh": ("harsh contrast", "balanced contrast"),
    "dark": ("under-exposure", "bright balanced exposure"),
    "bright": ("over-exposure", "even exposure with full highlights"),
    "cast": ("colour cast", "neutral colours"),
    "faded": ("faded colours", "vivid colours"),
    "garish": ("garish colours", "natural colours"),
}


# kind -> what it does to an image: mildly, severely.
EFFECTS: dict[str, tuple[str, str]] = {
    "gaussian_blur": ("fine detail is softened", "fine detail is lost"),
    "motion_blur": ("contours are smeared", "contours are doubled and smeared"),
    "defocus_blur": ("edges spread out", "shapes melt into discs"),
    "gaussian_noise": ("smooth areas look grainy", "grain hides fine texture"),
    "poisson_noise": ("bright areas flicker with grain", "grain covers the bright areas"),
    "colour_noise": ("colours are speckled", "coloured speckles hide texture"),
    "jpeg": ("edges show faint blocks", "blocks and banding break smooth areas"),
    "resample": ("small structures are blurred", "small structures are gone"),
    "pixelation": ("edges look stepped", "edges are broken into squares"),
    "oversharpen": ("edges carry bright rims", "edges are framed by wide halos"),
    "ringing": ("edges echo faintly", "edges echo in waves"),
    "flat": ("tones lie close together", "light and shade are nearly equal"),
    "harsh": ("shadows and highlights are clipped", "most shadows and highlights are clipped"),
    "dark": ("shadows lose detail", "shadows are black"),
    "bright": ("highlights lose detail", "highlights are burnt out"),
    "cast": ("greys are tinted", "all colours are tinted"),
    "faded": ("colours are pale", "colours are almost gone"),
    "garish": ("colours are too strong", "colours glow and clip"),
}


def word_key(step: Step) -> str:
    """Return the key of `WORDS` for one degradation as it was really applied."""
    params = step.params
    if step.kind == "resample" and params.get("up") in ("nearest", "box"):
        return "pixelation"
    if step.kind == "contrast":
        return "flat" if float(params["gain"]) < 1 else "harsh"
    if step.kind == "exposure":
        return "dark" if float(params["gamma"]) > 1 else "bright"
    if step.kind == "colour":
        if "cast" in params:
            return "cast"
        return "faded" if float(params["saturation"]) < 1 else "garish"
    return step.kind


def strength(severity: float) -> str:
    """Return the word for a severity in [0, 1]."""
    return "slight" if severity < 0.33 else "clear" if severity < 0.67 else "strong"


def name_region(box: tuple[float, float, float, float]) -> str:
    """Return where a region lies, by the third of the image that its centre falls in."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    row = "upper" if y < 0.4 else "lower" if y > 0.6 else "middle"
    column = "left" if x < 0.4 else "right" if x > 0.6 else "centre"
    return f"{row} {column}"


def level(rating: float) -> str:
    """Return the word for a rating in 1..5."""
    return LEVELS[min(4, max(0, round(rating) - 1))]


def _main_steps(record: DamageRecord) -> list[Step]:
    return sorted(record.steps, key=lambda step: -step.severity)[:2]


def _named(record: DamageRecord) -> str:
    return " and ".join(f"{strength(s.severity)} {WORDS[word_key(s)][0]}" for s in _main_steps(record))


def _effect(record: DamageRecord) -> str:
    """Return what the strongest damage does, as a sentence."""
    worst = _main_steps(record)[0]
    text = EFFECTS[word_key(worst)][worst.severity >= 0.5]
    return f"{text[0].upper()}{text[1:]}."


def _sections(record: DamageRecord, rating: float) -> tuple[str, str, str]:
    """Return the texts that both rounds share: damage, directions, issues."""
    if not record.steps:
        return (
            f"shows no damage. Overall quality is {level(rating)}.",
            "Keep the crisp detail and natural colours.",
            "None.",
        )
    where = f"in the {name_region(record.box)}" if record.box else "over the whole frame"
    wishes = " and ".join(WORDS[word_key(s)][1] for s in _main_steps(record))
    issues = " and ".join(WORDS[word_key(s)][0] for s in _main_steps(record))
    return (
        f"shows {_named(record)} {where}. {_effect(record)} Overall quality is {level(rating)}.",
        f"{wishes[0].upper()}{wishes[1:]} {where}.",
        f"{issues[0].upper()}{issues[1:]} {where}.",
    )


def _answer(labels: tuple[str, ...], texts: tuple[str, ...], bbox: str, rating: str, tool: str) -> str:
    lines = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
    return f'<think>\n{lines}\n</think>\n<answer>{{"bbox_2d": {bbox}, "rating": {rating}, "tool": "{tool}"}}</answer>'


def answer1(record: DamageRecord, rating: float, rating_text: str, box_texts: tuple[str, ...] | None) -> str:
    """Return round 1's answer: it zooms exactly where the damage is uneven."""
    damage, directions, issues = _sections(record, rating)
    if record.box is not None and box_texts is not None:
        decision = f"The damage is uneven, so I look closer at the {name_region(record.box)}."
        bbox, tool = f"[{', '.join(box_texts)}]", "crop"
    else:
        what = "The damage is even" if record.steps else "Nothing is wrong"
        decision, bbox, tool = f"{what}, so one look is enough.", "[0, 0, 0, 0]", "final"
    return _answer(ROUND1_SECTIONS, (f"The photo {damage}", directions, issues, decision), bbox, rating_text, tool)


SAME = 0.25
"""Ratings closer than this say the same."""


def change(first: float, second: float) -> str:
    """Return what the closer look did to the rating."""
    if abs(second - first) < SAME:
        return "Up close it is as it seemed, so the rating stays."
    if second < first:
        return "Up close it is worse than it seemed, so the rating falls."
    return "Up close it is better than it seemed, so the rating rises."


def answer2(record: DamageRecord, rating: float, rating_text: str, first: float) -> str:
    """Return round 2's answer after the crop was seen; it compares with `first`, the rating of round 1."""
    damage, directions, issues = _sections(record, rating)
    texts = (f"The crop {damage}", directions, issues, change(first, rating))
    return _answer(ROUND2_SECTIONS, texts, "[0, 0, 0, 0]", rating_text, "final")


BOX_MARGIN = 0.02
"""The embedded weights name boxes that are too small. Chosen on held-out photographs (`nano_held_out.json` in
`benchmarks/results`); measure it again for other weights."""
RETRIES = 5
"""One in forty answers about small clean images cannot be read; asked again, every other one of these can."""


def nano_protocol() -> Protocol:
    """Return the protocol that nano is trained on and asked with."""
    form = (
        'Think in four labelled parts inside <think>, then answer {{"bbox_2d": [x1, y1, x2, y2], "rating": r, '
        '"tool": "crop" or "final"}} inside <answer>.'
    )
    return Protocol(
        name="nano",
        round1=Prompt(text="{question} " + form),
        round2=Prompt(text="Now look at the crop. {question} " + form),
        questions=(
            "How good is the quality of this photo, from 1.00 (bad) to 5.00 (excellent)?",
            "Rate the technical quality of this picture from 1.00 (bad) to 5.00 (excellent).",
            "From 1.00 (bad) to 5.00 (excellent), how well is this image preserved?",
        ),
        direct_prefix=DIRECT_PREFIX,
        answer_starts=(f"<think>\n{ROUND1_SECTIONS[0]}: The photo", f"<think>\n{ROUND2_SECTIONS[0]}: The crop"),
        views=ViewPolicy(scales=(1.0, 0.5, 0.25), weights=(0.6, 0.2, 0.0), whole_weight=0.2, tile_px=336),
        decoding=Decoding(max_new_tokens=256),
        min_pixels=28 * 28,
        max_pixels=448 * 448,
        box_margin=BOX_MARGIN,
        retries=RETRIES,
        label_metrics=LABEL_METRICS,
    )


RECORDS = 4000
UNTOUCHED_EVERY = 20


def answers_about_damage(protocol: Protocol, count: int, seed: int) -> list[str]:
    """Return prompts and answers of both rounds for `count` drawn records; the image behind them is noise."""
    rng, none, texts = np.random.default_rng(seed), torch.empty(0), []
    image = rng.random((48, 48, 3), dtype=np.float32)
    for number in range(count):
        steps = () if number % UNTOUCHED_EVERY == 0 else sample_steps(rng)
        _, record = degrade(image, steps, rng, sample_box(rng) if number % 2 else None)
        label, guess = (float(value) for value in rng.uniform(1, 5, 2))
        box = tuple(f"{edge:.2f}" for edge in record.box) if record.box else None
        first = answer1(record, guess, f"{guess:.2f}", box)
        question = protocol.questions[int(rng.integers(0, len(protocol.questions)))]
        for asked in (round1(protocol, none, question), round2(protocol, none, none, first, question)):
            for message in asked.messages:
                texts.append(str(message["role"]) + "\n" + "".join(item.get("text", "") for item in message["content"]))
        texts += [first, answer2(record, label, f"{label:.2f}", guess)]
    return texts


def make_tokenizer(protocol: Protocol, seed: int, count: int = RECORDS) -> PreTrainedTokenizerFast:
    """Return the tokenizer trained on answers about `count` drawn records."""
    return build_tokenizer(answers_about_damage(protocol, count, seed))
