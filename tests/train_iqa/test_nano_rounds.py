"""What the rounds show and say of a region: after mirrors, cuts, resizes and zooms it is still where the record says.

The damaged region is black and the rest is white, so that the image itself tells where it lies.
"""

import numpy as np
import pytest
import torch
from nano_stages import random_learner

from train_iqa.nano.build import TOKEN_PX
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.drawing import failed
from train_iqa.nano.store import StoredImage
from train_iqa.nano.teach import first_rounds, grid_of, second_rounds, token_truth, varied

BOX = (0.25, 0.125, 0.5, 0.75)
"""Off the middle in both directions, so that every wrong axis and sign shows."""
BLUR = Step(kind="gaussian_blur", severity=0.8)


def marked(*, local: bool = True) -> StoredImage:
    image = torch.full((3, 336, 448), 255, dtype=torch.uint8)
    if local:
        image[:, 42:252, 112:224] = 0
    return StoredImage(image=image, label=2.5, record=DamageRecord(steps=(BLUR,), box=BOX if local else None))


def black_box(image: torch.Tensor) -> list[float]:
    """Where the black part lies, as shares of width and height."""
    rows, columns = (((image[0] < 0.5).any(axis)).nonzero()[:, 0] for axis in (1, 0))
    height, width = image.shape[1:]
    return [
        float(edge)
        for edge in (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    ]


@pytest.fixture(scope="module")
def builder():
    return random_learner().builder


def test_a_view_has_the_box_of_its_damage():
    lefts, sizes = set(), set()
    for seed in range(40):
        image, record = varied(marked(), np.random.default_rng(seed))
        assert black_box(image) == pytest.approx(record.box, abs=0.5 * 3 / min(image.shape[1:]))
        lefts.add(round(record.box[0], 3))
        sizes.add(tuple(image.shape[1:]))
    assert lefts == {0.25, 0.5}
    assert len(sizes) > 10
    assert all(side % TOKEN_PX == 0 for size in sizes for side in size)


def test_the_truth_of_a_token_is_its_place_and_whether_damage_covers_it(builder):
    record = DamageRecord(steps=(BLUR,), box=(0.5, 0.0, 1.0, 0.5))
    wanted = [[0.25, 0.25, 0], [0.75, 0.25, 1], [0.25, 0.75, 0], [0.75, 0.75, 0]]
    assert token_truth(record, (2, 2)).tolist() == wanted
    rows, images, truth = first_rounds(builder, [marked(), marked(local=False), marked()], np.random.default_rng(1))
    at = 0
    for row, image in zip(rows, images, strict=True):
        assert row.grids == (grid_of(image),)
        here = truth[at : at + grid_of(image)[0] * grid_of(image)[1]]
        at += len(here)
        y, x = ((here[:, axis] * side).long() for axis, side in ((1, image.shape[1]), (0, image.shape[2])))
        if row.numbers[0].is_box:
            assert torch.equal(image[0][y, x] < 0.5, here[:, 2] > 0.5)
            assert [number.value for number in row.numbers[:4]] == pytest.approx(black_box(image), abs=0.02)
        else:
            assert here[:, 2].all()  # even damage covers all
    assert at == len(truth)


def test_round_2_sees_the_region_that_was_named(builder):
    rows, images = second_rounds(builder, [marked(), marked(local=False)], np.random.default_rng(0))
    (whole, crop), (even, part) = images[:2], images[2:]
    assert torch.equal(whole, marked().image.float() / 255)
    assert float((crop < 0.5).float().mean()) > 2 * float((whole < 0.5).float().mean())  # 16 % of the whole is black
    assert min(float(even.min()), float(part.min())) > 0.99
    for row, pair in zip(rows, (images[:2], images[2:]), strict=True):
        assert row.grids == tuple(map(grid_of, pair))
        assert all(side % TOKEN_PX == 0 for image in pair for side in image.shape[1:])
        assert [number.value for number in row.numbers] == [2.5]
    texts = [builder.tokenizer.decode(row.ids) for row in rows]
    for text, place in zip(texts, ("left", "over the whole frame"), strict=True):
        assert place in text[text.index("Crop Inspection Summary") :]  # what is true, whatever round 1 claimed
    assert "over the whole frame" not in texts[1][: texts[1].index("Crop Inspection Summary")]


def test_a_region_that_failed_is_where_its_record_says():
    boxes = 0
    for seed in range(40):
        reference = np.random.default_rng(seed).random((60, 90, 3), dtype=np.float32)
        image, record = failed(reference, np.random.default_rng(seed))
        if record.box is None:
            continue
        boxes += 1
        changed = torch.from_numpy(np.abs(image - reference).max(axis=2, keepdims=True)).permute(2, 0, 1)
        assert black_box(1 - (changed > 0).float()) == pytest.approx(record.box, abs=0.03)
    assert boxes >= 5
