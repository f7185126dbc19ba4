"""The people stage: the gradient of one step against an independent sum of its parts."""

import csv

import numpy as np
import pytest
import torch
from nano_stages import full_store, noise_photograph, random_learner
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from train_iqa.data import DatasetProblems
from train_iqa.nano.dense import dense_batch
from train_iqa.nano.ladders import GOOD_LABEL, RUNGS, ladder_batch
from train_iqa.nano.language import PAIR_SCALE, RatingTree
from train_iqa.nano.people import People, PeopleConfig, people_step, read_opinions
from train_iqa.nano.pools import Pools, read_pools
from train_iqa.nano.rows import RATING_SIGMA
from train_iqa.nano.store import GRID, read_pairs


@pytest.fixture(scope="module")
def store():
    return full_store()


@pytest.fixture(scope="module")
def learner():
    return random_learner()


@pytest.fixture
def people(tmp_path):
    with open(tmp_path / "people.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "set", "scene", "mos"])
        for number in range(8):
            noise_photograph(50 + number, 224).save(tmp_path / f"{number}.png")
            table.writerow([f"{number}.png", "held", "one", 1 + number * 0.5])
    return People(read_opinions(tmp_path), torch.device("cpu"))


def test_every_image_of_a_group_keeps_its_score_and_small_sets_come_often(tmp_path):
    """Grey images say which score is theirs. Sets of 9 and 1 images are drawn like roots of their sizes, as 3 to 1."""
    rows = ["image,set,scene,mos"]
    for number in range(10):
        Image.new("RGB", (56, 56), (20 + 20 * number,) * 3).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'wide' if number < 9 else 'narrow'},{number},{1 + number / 4}")
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n")
    people, alone = People(read_opinions(tmp_path), torch.device("cpu")), 0
    for seed in range(100):
        images, scores = people.group(4, np.random.default_rng(seed))
        shown = 1 + (images.mean((1, 2, 3)) * 255 - 20) / 80
        torch.testing.assert_close(shown, scores, rtol=0, atol=1e-3)
        alone += len(scores) == 1
    assert 13 <= alone <= 38


def rating_loss(tree, images, question, labels, sigma):
    """Divergence from a bell about the labels, and the excess of the pairs' loss, written out."""
    logprobs = tree.logprobs(images, question)
    ratings = tree.ratings
    wanted = torch.exp(-((ratings[None] - labels[:, None]) ** 2) / (2 * sigma**2))
    wanted = wanted / wanted.sum(1, keepdim=True)
    divergence = (wanted * (wanted.clamp_min(1e-12).log() - logprobs)).sum(1).mean()
    means = (logprobs.exp() / logprobs.exp().sum(1, keepdim=True) * ratings).sum(1)
    pairs = []
    for a in range(len(labels)):
        for b in range(a + 1, len(labels)):
            target = torch.sigmoid((labels[a] - labels[b]) / PAIR_SCALE)
            asked = binary_cross_entropy_with_logits((means[a] - means[b]) / PAIR_SCALE, target)
            least = -(target * target.log() + (1 - target) * (1 - target).log())
            pairs.append(asked - least)
    return divergence + torch.stack(pairs).mean()


def gradients(learner):
    found = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad(set_to_none=True)
    return found


@pytest.fixture(scope="module")
def pools(store, tmp_path_factory):
    """Two pools of four and one restoration alone, as files."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(4)
    for kind in ("images", "references"):
        (folder / kind).mkdir()
    for group, count in (("one", 4), ("two", 4), ("alone", 1)):
        for number in range(count):
            reference = np.asarray(noise_photograph(90 + len(group), 224))
            noisy = reference + rng.normal(0, 12.0 * number + 1, reference.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{group}_{number}.png")
            Image.fromarray(reference).save(folder / "references" / f"{group}_{number}.png")
    assert len(read_pairs(folder)) == 1  # what is in a pool is no pair
    return Pools(read_pools(folder), store.scale, torch.device("cpu"))


def test_different_images_whose_names_agree_are_no_pool(tmp_path):
    for kind in ("images", "references"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            noise_photograph(number, 224).save(tmp_path / kind / f"photo_{number}.png")
    for read in (read_pairs, read_pools):
        with pytest.raises(ValueError, match=r"photo_0\.png and photo_1\.png .* their references differ"):
            read(tmp_path)


def test_a_table_is_read_as_excel_writes_it_and_what_cannot_be_read_is_named(tmp_path):
    noise_photograph(1, 56).save(tmp_path / "a.png")
    noise_photograph(2, 55).save(tmp_path / "small.png")
    table, columns = tmp_path / "people.csv", "set,scene,mos,image\n"
    table.write_text(f"{columns}s,1,3,a.png\n", encoding="utf-8-sig")
    people = People(read_opinions(tmp_path), torch.device("cpu"))
    sizes = {tuple(people.group(3, np.random.default_rng(seed))[0].shape[2:]) for seed in range(20)}
    assert sizes == {(56, 56), (28, 28)}
    table.write_text(f"{columns}s,1,3,a.png\ns,1,3\n")
    with pytest.raises(ValueError, match=r"people\.csv:3: fewer fields than columns"):
        read_opinions(tmp_path)
    table.write_text("image,set,scene,mos\na.png,s,1,3,5\na.png,s,1,0_3\na.png,s,1,nan\nnone.png,s,1,3\n")
    with pytest.raises(DatasetProblems) as caught:
        read_opinions(tmp_path)
    assert [problem.kind for problem in caught.value.problems] == ["label", "label", "label", "missing"]
    noise_photograph(3, 56).save(tmp_path / "b.png")
    table.write_text(f"{columns}s,1,3,a.png\n s , 1,3,b.png\n")
    assert len({(opinion.set, opinion.scene) for opinion in read_opinions(tmp_path)}) == 1
    table.write_text(f"{columns}s,1,3,a.png\ns,2,3,b.png\ns,2,4,./a.png\n")  # one image in two scenes, so in two folds
    with pytest.raises(DatasetProblems, match=r"people\.csv:4: .*a\.png is listed already, at .*people\.csv:2; leave"):
        read_opinions(tmp_path)
    table.write_text(f"{columns}s,1,3,small.png\n")
    with pytest.raises(ValueError, match=r"small\.png: 55 x 55 px; sides must be at least 56 px"):
        People(read_opinions(tmp_path), torch.device("cpu"))


@pytest.mark.integration
def test_a_pool_holds_all_candidates_of_one_image_with_the_truths_order(pools):
    assert len(pools) == 2
    for images, labels in zip(pools.images, pools.labels, strict=True):
        assert images.shape == (4, 3, 224, 224)
        assert (labels.diff() <= 0).all()  # the more noise the worse
        assert labels[0] > labels[3]
    drawn = [pools.draw(3, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(images.shape) for images, _ in drawn} == {(3, 3, 224, 224)}
    assert len({tuple(labels.tolist()) for _, labels in drawn}) > 4  # different candidates and orders


@pytest.mark.integration
@pytest.mark.parametrize(("moved_share", "pool_share"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_one_steps_gradient_is_the_sum_of_its_parts(learner, store, people, pools, moved_share, pool_share):
    labels = store.labels.copy()
    store.labels = np.where(np.arange(len(labels)) < 4, GOOD_LABEL + 0.5, np.minimum(labels, GOOD_LABEL - 0.2))
    words = {"first": 0, "local": 0, "second": 0}
    shares = {"moved_share": moved_share, "pool_share": pool_share}
    config = PeopleConfig(groups=2, group=3, rehearsed=8, ladders=2, candidates=3, **words, **shares)
    tree = RatingTree(learner.model, learner.builder)
    losses = people_step(learner, tree, people, store, config, np.random.default_rng(5), pools)
    taken = gradients(learner)

    rng = np.random.default_rng(5)
    question = learner.builder.question(rng)
    total = torch.zeros(())
    for _ in range(2):
        images, scores = people.group(3, rng)
        rng.random()
        images.requires_grad_(True)
        first = rating_loss(tree, images, question, scores, config.sigma)
        total = total + first / 2
        if moved_share:
            (slope,) = torch.autograd.grad(first, images, retain_graph=True)
            share = (images.shape[2] * images.shape[3]) ** 0.5 / 224
            lengths = torch.from_numpy(rng.uniform(0, 0.8 * share, len(images))).float()
            moved = images.detach().clone()
            for k in range(len(moved)):
                moved[k] += lengths[k] * slope[k] / slope[k].norm()
            total = total + 0.5 * rating_loss(tree, moved, question, scores, config.sigma) / 2
    crops, targets = dense_batch(store, 8, GRID, rng)
    total = total + 0.6 * rating_loss(tree, crops, question, targets.labels, RATING_SIGMA)
    rungs, gaps = ladder_batch(store, 2, rng)
    logprobs = tree.logprobs(rungs, question)
    means = (logprobs.exp() / logprobs.exp().sum(1, keepdim=True) * tree.ratings).sum(1)
    short = []
    for k in range(2):
        room = 0.3 * (float(means[k * RUNGS].detach()) - 1)
        for step in range(RUNGS - 1):
            above, below = means[k * RUNGS + step], means[k * RUNGS + step + 1]
            short.append((min(float(gaps[k, step]), room) - (above - below)).clamp_min(0) / PAIR_SCALE)
    ladder = torch.stack(short).mean()
    assert losses["ladder"] == pytest.approx(float(ladder.detach()), rel=1e-3)
    assert float(ladder.detach()) > 0  # else the test says nothing of the ladders
    if pool_share:
        rng.random()
        candidates, labels = pools.draw(3, rng)
        logprobs = tree.logprobs(candidates, question)
        means = (logprobs.exp() / logprobs.exp().sum(1, keepdim=True) * tree.ratings).sum(1)
        excess = []
        for a in range(3):
            for b in range(a + 1, 3):
                wanted = torch.sigmoid(3 * (labels[a] - labels[b]) / PAIR_SCALE)
                asked = binary_cross_entropy_with_logits((means[a] - means[b]) / PAIR_SCALE, wanted)
                least = -(torch.xlogy(wanted, wanted) + torch.xlogy(1 - wanted, 1 - wanted))
                excess.append(asked - least)
        pool = torch.stack(excess).mean()
        assert losses["pool"] == pytest.approx(float(pool.detach()), rel=1e-3)
        total = total + pool
    (total + ladder).backward()
    expected = gradients(learner)
    store.labels = labels
    assert taken.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(taken[name], value, rtol=2e-3, atol=2e-5, msg=name)
