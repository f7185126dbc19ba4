"""The teaching stage: the gradient of one step is the sum of its parts, and targets are those of their images."""

import numpy as np
import pytest
import torch
from nano_stages import full_store, random_learner

from train_iqa.nano.dense import dense_batch, local_rank
from train_iqa.nano.language import RatingTree
from train_iqa.nano.rows import RATING_SIGMA
from train_iqa.nano.store import GRID
from train_iqa.nano.teach import DENSE_WEIGHT, TeachConfig, as_float, drawn_from, teach_step
from train_iqa.nano.tower import read_tokens


@pytest.fixture(scope="module")
def store():
    return full_store()


@pytest.mark.integration
def test_crops_keep_their_labels_and_the_ranks_of_their_tokens(store):
    images, targets = dense_batch(store, 16, GRID, np.random.default_rng(0))
    brightness = store.images[: store.count].float().mean((1, 2, 3)) / 255  # which no orientation changes
    for image, label in zip(images, targets.labels, strict=True):
        place = int((brightness - image.mean()).abs().argmin())
        assert float(label) == pytest.approx(float(store.labels[place]), abs=1e-5)
    knots = store.scale.knots["haarpsi"]
    wanted = np.interp(store.local[:4].cpu().numpy(), knots, np.linspace(0, 1, len(knots)))
    np.testing.assert_allclose(local_rank(store, torch.arange(4)).cpu().numpy(), wanted, atol=1e-4)


def divergence(tree, logprobs, labels):
    """From a bell about the labels, a mean over images, written out."""
    wanted = torch.exp(-((tree.ratings[None] - labels[:, None]) ** 2) / (2 * RATING_SIGMA**2))
    wanted = wanted / wanted.sum(1, keepdim=True)
    return (wanted * (wanted.clamp_min(1e-12).log() - logprobs)).sum(1).mean()


@pytest.mark.integration
def test_one_steps_gradient_is_the_sum_of_its_parts(store):
    learner = random_learner()
    config = TeachConfig(direct=8, direct_large=3, first=0, first_local=0, second=0)
    tree = RatingTree(learner.model, learner.builder)

    def gradients():
        modules = (learner.model, learner.heads)
        found = [one.grad.clone() for module in modules for one in module.parameters() if one.grad is not None]
        for module in modules:
            module.zero_grad(set_to_none=True)
        return found

    teach_step(learner, tree, store, config, np.random.default_rng(5))
    taken = gradients()
    rng = np.random.default_rng(5)
    images, targets = dense_batch(store, 8, GRID, rng)
    dense, _ = learner.heads.loss(read_tokens(learner.tower, images), targets)
    question = learner.builder.question(rng)
    total = DENSE_WEIGHT * dense + divergence(tree, tree.logprobs(images, question), targets.labels)
    for large in drawn_from(store.whole_images, 3, rng):
        logprobs = tree.logprobs(as_float(large.image)[None], question)
        total = total + divergence(tree, logprobs, torch.tensor([large.label])) / 3
    total.backward()
    expected = gradients()
    assert len(taken) == len(expected)
    largest = max(float(one.abs().max()) for one in expected)
    for one, other in zip(taken, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5 * largest)
