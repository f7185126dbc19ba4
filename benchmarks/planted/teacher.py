"""A scripted teacher for planted cases, and a data set to ask it about: the whole curation without any model.

About each image it gives its grounded or its planted answer, by the request's seed, so that a run that goes on after
a kill gets what it would have got. Asked to go on from a beginning it strays around what it sees. Without the image it
strays around what follows from the text alone (`reliance.guess`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from train_iqa.curation.prompts import image_url
from train_iqa.curation.written import Written, read_written
from zoomiqa_reward.images.loading import load_image, save_png
from zoomiqa_reward.protocol.spec import ROUND2_SECTIONS
from zoomiqa_reward.runs.outputs import part_folder, write_text

from .cases import PlantedCase
from .endpoint import request_images, request_text, url_digest
from .reliance import guess, sample_continuation

MAX_PIXELS = 4_194_304
"""Of the configuration's default: the teacher tells images apart by what it is sent."""


class ScriptedTeacher:
    """A script for `ScriptedServer`."""

    def __init__(self, answers: Mapping[str, Sequence[str]], second: Mapping[str, str] | None = None) -> None:
        """`answers` to round 1 and the `second` round's, by the digest of the image (`digest_of`)."""
        self.answers, self.second = answers, second or {}

    def __call__(self, body: Mapping[str, Any]) -> str:
        """Return the answer to a request; an unknown image is an error of the script."""
        images, (_, begins, beginning) = request_images(body), request_text(body).partition("The analysis begins:")
        if begins:
            shown = guess(beginning)
            if images:
                answer = read_written(self.answers[images[0]][0], ())
                shown = answer.bbox, answer.rating
            return sample_continuation(*shown, np.random.default_rng(int(body["seed"]))).render()
        if len(images) == 2:
            return self.second[images[0]]
        options = self.answers[images[0]]
        return options[int(body["seed"]) % len(options)]


def digest_of(path: Path) -> str:
    """Return what tells an image from others in a request."""
    return url_digest(image_url(load_image(path), MAX_PIXELS))


def scripted_dataset(folder: Path, cases: Sequence[PlantedCase]) -> tuple[Path, ScriptedTeacher]:
    """Write the cases' images with a table of labels, and return the table (family `csv`) and their teacher.

    `cases` as `make_cases` returns them: a grounded one and a planted one of each image. The opinion score is the
    grounded answer's rating.
    """
    part_folder(folder)
    answers: dict[str, tuple[str, ...]] = {}
    second: dict[str, str] = {}
    lines = ["image,mos"]
    for number, (grounded, planted) in enumerate(zip(cases[::2], cases[1::2], strict=True)):
        path = save_png(grounded.image, folder / f"{number:04d}.png")
        digest = digest_of(path)
        answers[digest] = (grounded.written.render(), planted.written.render())
        second[digest] = _second(grounded.written).render()
        lines.append(f"{path.name},{grounded.written.rating:.2f}")
    table = folder / "labels.csv"
    write_text(table, "\n".join(lines) + "\n")
    return table, ScriptedTeacher(answers, second)


def _second(written: Written) -> Written:
    """Return round 2's answer: what round 1 said of the region, confirmed."""
    texts = [texts for _, texts in written.sections]
    texts[-1] = ("The closer look settles the rating.",)
    return replace(written, sections=tuple(zip(ROUND2_SECTIONS, texts, strict=True)), bbox=None)
