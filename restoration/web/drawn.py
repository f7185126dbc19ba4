"""What the page shows of a result: HTML with inline SVG, and the regions drawn on the image."""

import math
from collections.abc import Sequence
from html import escape

from PIL import Image, ImageDraw

from restoration.web.studio import DrawnSoFar, RatedUpload
from zoomiqa_reward.images.drawing import MARK
from zoomiqa_reward.model.quality_map import QualityMap
from zoomiqa_reward.model.ranking import Ranking
from zoomiqa_reward.model.ratings import Assessment

SCALE = ("bad", "poor", "fair", "good", "excellent")
BINS = 40
"""Bars of the distribution, a tenth of a rating each."""


def headline(rated: RatedUpload) -> str:
    """Return the rating in large figures, and below it the distribution; or why there is no rating."""
    if rated.error is not None:
        return f'<p class="zq-none">Not rated: {escape(rated.error)}.</p>'
    return (
        f'<div class="zq-rating"><b>{rated.mean:.2f}</b> of 5 <span>± {rated.std:.2f}</span></div>'
        f"{histogram(rated.ratings, rated.shares, rated.mean)}"
        '<p class="zq-small">The bars are the probability that the model gives each rating. The line is their mean, '
        f"which is the rating; ± is their standard deviation. {rated.image.width} x {rated.image.height} px, "
        f"{rated.seconds:.1f} s.</p>"
    )


def histogram(ratings: Sequence[float], shares: Sequence[float], mean: float) -> str:
    """Return an SVG of the distribution over the ratings 1..5, a bar per tenth, with a line at the mean."""
    bins = [0.0] * BINS
    for rating, share in zip(ratings, shares, strict=True):
        bins[min(BINS - 1, math.floor((rating - 1) * 10 + 1e-6))] += share
    width, height, left, top = 400, 120, 20, 12
    highest = max(bins)
    bars = "".join(
        f'<rect x="{left + 10 * at + 1}" y="{top + height * (1 - share / highest):.1f}" width="8" '
        f'height="{height * share / highest:.1f}"><title>{1 + at / 10:.1f} to {1.1 + at / 10:.1f}: {share:.1%}</title>'
        "</rect>"
        for at, share in enumerate(bins)
    )
    ticks = "".join(
        f'<text x="{left + 100 * at}" y="{top + height + 18}" text-anchor="middle">{at + 1}</text>'
        f'<text x="{left + 100 * at}" y="{top + height + 34}" text-anchor="middle" class="zq-word">{word}</text>'
        for at, word in enumerate(SCALE)
    )
    at_mean = left + 100 * (mean - 1)
    return (
        f'<svg class="zq-svg" viewBox="-12 0 {width + 2 * left + 24} {top + height + 40}" role="img" '
        f'aria-label="distribution of the rating">{bars}'
        f'<line x1="{left}" x2="{left + width}" y1="{top + height}" y2="{top + height}"/>'
        f'<line class="zq-mean" x1="{at_mean:.1f}" x2="{at_mean:.1f}" y1="{top - 8}" y2="{top + height}"/>{ticks}</svg>'
    )


def words(assessment: Assessment | None) -> str:
    """Return what the model says in each round. Text that cannot be read as a rating is not shown."""
    if assessment is None:
        return '<p class="zq-small">The model is writing its answer ...</p>'
    if not assessment.valid:
        return f'<p class="zq-none">The answer in words could not be read: {escape(assessment.error or "")}.</p>'
    parts = []
    for number, turn in enumerate(assessment.turns, start=1):
        what = "the whole image" if number == 1 else "the image and the region"
        rating = f"rating {turn.rating:.2f}" if math.isfinite(turn.rating) else "no rating"
        rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in turn.sections.items())
        parts.append(f"<h4>Round {number}: {what} <span>{rating}</span></h4><dl>{rows}</dl>")
    if len(assessment.turns) == 1:
        parts.append('<p class="zq-small">The model asked for no closer look, so there is no second round.</p>')
    parts.append(
        '<p class="zq-small">These ratings are numbers that the model wrote in its answer. The large one above is the '
        "mean of the distribution.</p>"
    )
    warning = f'<p class="zq-small">{escape(assessment.warning)}</p>' if assessment.warning else ""
    return f'<div class="zq-words">{"".join(parts)}{warning}</div>'


def regions(image: Image.Image, assessment: Assessment | None) -> tuple[Image.Image, Image.Image | None]:
    """Return the image with the region of round 2 drawn, and that region as the model saw it; None if there is none."""
    turns = assessment.turns if assessment is not None else ()
    box = turns[1].crop_box if len(turns) > 1 else None
    if box is None:
        return image, None
    shown, width = image.copy(), max(2, round(max(image.size) / 160))
    draw = ImageDraw.Draw(shown)
    left, top, right, bottom = box
    draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=width + 2)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=MARK, width=width)
    return shown, image.crop(box)


def table(names: Sequence[str], ranking: Ranking) -> list[list[str]]:
    """Return a row per image, best first: rank, name, rating, its standard deviation, remark."""
    rows = []
    for number, index in enumerate(ranking.order, start=1):
        ties = [names[other] for group in ranking.ties if index in group for other in group if other != index]
        remark = f"tie with {', '.join(ties)}" if ties else ""
        if index in ranking.invalid:
            rows.append(["-", names[index], "", "", f"not rated: {ranking.ratings.errors[index]}"])
        else:
            mean, std = float(ranking.ratings.mean[index]), float(ranking.ratings.std[index])
            rows.append([str(number), names[index], f"{mean:.2f}", f"{std:.2f}", remark])
    return rows


def map_notes(quality: QualityMap) -> str:
    """Return what the map rests on: its views, its resolution and its range."""
    if not quality.valid:
        return f'<p class="zq-none">No view could be rated: {escape(quality.ratings.errors[0] or "")}.</p>'
    low, high = quality.range
    return (
        f'<p class="zq-small">{len(quality.boxes)} views, each rated as an image of its own, from {low:.2f} to '
        f"{high:.2f}. Resolution: {quality.resolution_px} px; smaller detail is not resolved. Red is "
        "worst, blue is best; the outline marks the lowest view.</p>"
    )


def progress(done: int, n: int, text: str) -> str:
    """Return a bar with a line of text."""
    return (
        f'<div class="zq-bar"><i style="width:{100 * done / n:.0f}%"></i></div><p class="zq-small">{escape(text)}</p>'
    )


def drawing_progress(state: DrawnSoFar) -> str:
    """Return how far best-of-N is, the best rating so far, and the notes."""
    done, best = len(state.order), state.order[0]
    left = state.seconds / done * (state.n - done)
    text = f"{done} of {state.n} rated in {state.seconds:.0f} s" + (f", about {left:.0f} s left" if left else "")
    text += f". Best so far: {best.score:.2f}, {best.restorer}." if best.valid else ". None could be rated."
    notes = "".join(f"<li>{escape(note)}</li>" for note in state.notes)
    return progress(done, state.n, text) + (f"<ul>{notes}</ul>" if notes else "")


def gallery(state: DrawnSoFar) -> list[tuple[Image.Image, str]]:
    """Return image and caption of each candidate that has an image, best first."""
    return [
        (
            candidate.image,
            f"{candidate.rank}:  {candidate.score:.2f}, {candidate.restorer}"
            if candidate.valid else f"not rated: {candidate.error}",
        )
        for candidate in state.order if candidate.has_image()
    ]  # fmt: skip
