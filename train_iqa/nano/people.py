"""The stage that learns from people: opinion scores of real and restored images, with rehearsal of what was taught.

A step reads one group of images: of one scene where a set has scenes of many images (restorations of one photograph
by different methods), else of one set; as native tiles, at half size, or whole. All of a group are cut at one place
and size, so that only their quality differs, and learn their ratings and all pairs of them. Some steps read the group
again, moved against its ratings (adversarial images of a small Euclidean length): without them the gradient of the
rating says little about a change that can be seen. Ladders of damage are read beside them (`ladders.py`), and pools of
candidates where a folder holds them (`pools.py`). Without rehearsal of rows the words break within minutes.
Source of the moved images: Goodfellow et al. 2015, with the Euclidean norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train_iqa.data import DatasetProblems
from train_iqa.data.record import RATINGS, Listing
from train_iqa.data.tables import number, read_csv
from train_iqa.nano.build import TOKEN_PX
from train_iqa.nano.dense import dense_batch, reorient
from train_iqa.nano.ladders import RUNGS, ladder_batch, ladder_loss
from train_iqa.nano.language import RatingTree
from train_iqa.nano.pools import Pools, pool_loss
from train_iqa.nano.rows import RATING_SIGMA
from train_iqa.nano.store import GRID, Store
from train_iqa.nano.teach import NanoLearner, text_step
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.runs.digest import file_digest, listing_digest

FILE = "people.csv"
COLUMNS = ("image", "set", "scene", "mos")
SCENE_IMAGES = 8
"""A scene with at least so many images makes groups of its own."""
VIEWS, VIEW_SHARES = ("tile", "half", "whole"), (0.5, 0.3, 0.2)
TILES_PX = (224, 280, 336)
WHOLE_PIXELS = 448 * 448
LEAST_PX = 2 * TOKEN_PX
MOVE_LENGTH = 0.8
"""Longest Euclidean move of a 224 px image; larger ones move further, in proportion to their side."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One image with the mean of people's scores."""

    image: Path
    set: str
    scene: str
    mos: float
    """1 bad .. 5 excellent."""


@dataclass(frozen=True, kw_only=True)
class PeopleConfig:
    """One step of the stage."""

    groups: int = 4
    group: int = 6
    """Images of a group."""
    rehearsed: int = 64
    """Synthetic crops with direct ratings; a multiple of 8."""
    ladders: int = 8
    """Crops whose further damage must lower the rating."""
    candidates: int = 6
    """Of one pool, in the steps that read one."""
    pool_share: float = 0.5
    """Of the steps, those that read a pool."""
    first: int = 8
    local: int = 24
    """More first rounds, of locally damaged images alone."""
    second: int = 12
    moved_share: float = 0.35
    """Of the groups, those that are read moved as well."""
    sigma: float = 0.2
    """Width of the bell about a mean of people's scores."""
    learning_rate: float = 1.2e-4
    """Of the language side, peak; the tower's is 0.7 of it. Cosine to 3 %."""
    weight_decay: float = 0.02


def read_opinions(folder: Path) -> list[Opinion]:
    """Return the rows of `folder/people.csv`. Raises DatasetProblems with all that is missing, double or wrong."""
    file = folder / FILE
    listing, opinions, first = Listing(root=folder, scale=RATINGS), [], dict[Path, str]()
    for where, row in read_csv(file, COLUMNS, listing):
        path, mos = folder / row["image"], number(row["mos"], where, "mos", listing)
        if not path.is_file():
            listing.fault("missing", where, f"no image {path}")
        elif mos is not None and not 1 <= mos <= 5:
            listing.fault("label", where, f"mos {mos} is outside 1..5")
        elif mos is not None and (before := first.setdefault(path.resolve(), where)) != where:
            listing.fault("duplicate", where, f"{path} is listed already, at {before}; leave one of them")
        elif mos is not None:
            opinions.append(Opinion(image=path, set=row["set"], scene=row["scene"], mos=mos))
    if not opinions and not listing.problems:
        listing.fault("layout", file, "names no images")
    if listing.problems:
        raise DatasetProblems([replace(problem, dataset="people") for problem in listing.problems])
    return opinions


def opinions_digest(folder: Path) -> str:
    """Return what tells other opinions: the table's bytes, and its images by name and size. Raises DatasetProblems."""
    return file_digest(folder / FILE, size=16) + listing_digest(opinion.image for opinion in read_opinions(folder))


def folds(opinions: Sequence[Opinion], count: int) -> list[int]:
    """Return the fold 0..count-1 of each image: a scene is in one, and each set's scenes are dealt out evenly."""
    fold_of: dict[tuple[str, str], int] = {}
    for name in sorted({opinion.set for opinion in opinions}):
        scenes = sorted({opinion.scene for opinion in opinions if opinion.set == name})
        order = np.random.default_rng(7).permutation(len(scenes))
        fold_of |= {(name, scene): int(fold % count) for scene, fold in zip(scenes, order, strict=True)}
    return [fold_of[opinion.set, opinion.scene] for opinion in opinions]


class People:
    """Groups of scored images, drawn at one place and size."""

    def __init__(self, opinions: Sequence[Opinion], device: torch.device) -> None:
        """Read the images. Raises ImageError, and ValueError for one with a side below `LEAST_PX`."""
        self.device = device
        self._images = {
            opinion.image: (load_image(opinion.image) * 255).round().to(torch.uint8).to(device) for opinion in opinions
        }
        for path, image in self._images.items():
            if min(image.shape[1:]) < LEAST_PX:
                raise ValueError(
                    f"{path}: {image.shape[2]} x {image.shape[1]} px; sides must be at least {LEAST_PX} px, since "
                    "images are read at half size too; leave it out"
                )
        by_scene: dict[tuple[str, str], list[Opinion]] = {}
        for opinion in opinions:
            by_scene.setdefault((opinion.set, opinion.scene), []).append(opinion)
        self.pools: dict[str, list[list[Opinion]]] = {}
        """Set -> pools that groups are drawn from."""
        for name in sorted({opinion.set for opinion in opinions}):
            scenes = [members for (of, _), members in by_scene.items() if of == name]
            wide = [members for members in scenes if len(members) >= SCENE_IMAGES]
            rest = [opinion for members in scenes if len(members) < SCENE_IMAGES for opinion in members]
            self.pools[name] = [*wide, *([rest] if rest else [])]

    def group(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return up to `count` images (B, 3, H, W) in [0, 1], sides multiples of 28, and their scores (B,)."""
        names = list(self.pools)
        sizes = np.sqrt([sum(map(len, self.pools[name])) for name in names])  # small sets count more than their size
        pools = self.pools[str(rng.choice(names, p=sizes / sizes.sum()))]
        pool = pools[int(rng.integers(0, len(pools)))]
        chosen = [pool[k] for k in rng.choice(len(pool), min(count, len(pool)), replace=False)]
        view, flip = str(rng.choice(VIEWS, p=VIEW_SHARES)), bool(rng.random() < 0.5)
        tile, at = int(rng.choice(TILES_PX)), rng.random(2)
        same_scene = len({opinion.scene for opinion in chosen}) == 1
        parts = []
        for opinion in chosen:
            image = self._images[opinion.image].float() / 255
            image = reorient(image, 4, (1, 2)) if image.shape[1] > image.shape[2] else image  # to landscape
            parts.append(cut_view(image, view, tile, at if same_scene else rng.random(2)))
        if view == "whole":  # to the first one's size: images of one set differ little in shape
            parts = [resize_bicubic(part, *parts[0].shape[1:]) for part in parts]
        sides = [min(part.shape[axis] for part in parts) for axis in (1, 2)]
        images = torch.stack([part[:, : sides[0], : sides[1]] for part in parts])
        scores = torch.tensor([opinion.mos for opinion in chosen], dtype=torch.float32, device=self.device)
        return (images.flip(3) if flip else images).contiguous(), scores


def cut_view(image: Tensor, view: str, tile: int, at: Sequence[float] | np.ndarray) -> Tensor:
    """Return a float CHW image's view: `whole` within `WHOLE_PIXELS`, or a tile at full or half size.

    tile: its side in pixels; at: where it lies between top and bottom, left and right, 0..1.
    """
    height, width = image.shape[1:]
    if view == "whole":
        scale = min(1.0, (WHOLE_PIXELS / (height * width)) ** 0.5)
        return resize_bicubic(
            image, *(max(TOKEN_PX, int(side * scale) // TOKEN_PX * TOKEN_PX) for side in (height, width))
        )
    if view == "half":
        image = resize_bicubic(image, round(height / 2), round(width / 2))
        height, width = image.shape[1:]
    sides = [min(tile, side // TOKEN_PX * TOKEN_PX) for side in (height, width)]
    top, left = (int(share * (side - side_px)) for share, side, side_px in zip(at, (height, width), sides, strict=True))
    return image[:, top : top + sides[0], left : left + sides[1]]


def moved_images(images: Tensor, gradient: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the images moved up the gradient of their loss by a random length of up to `MOVE_LENGTH` (see there)."""
    longest = MOVE_LENGTH * (images.shape[2] * images.shape[3]) ** 0.5 / 224
    lengths = torch.from_numpy(rng.uniform(0, longest, len(images))).to(images).view(-1, 1, 1, 1)
    norms = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return images + lengths * gradient / norms


def people_step(
    learner: NanoLearner,
    tree: RatingTree,
    people: People,
    store: Store,
    config: PeopleConfig,
    rng: np.random.Generator,
    pools: Pools | None = None,
) -> dict[str, float]:
    """Accumulate the gradients of one step and return its losses."""
    question = learner.builder.question(rng)
    groups = [group_step(tree, people, question, config, rng) for _ in range(config.groups)]
    names = {name for losses in groups for name in losses}
    means = {name: float(np.mean([losses[name] for losses in groups if name in losses])) for name in sorted(names)}
    return means | rehearse(learner, tree, store, question, config, rng, pools)


def group_step(
    tree: RatingTree, people: People, question: str, config: PeopleConfig, rng: np.random.Generator
) -> dict[str, float]:
    """Accumulate the gradients of one group of images that people scored, and return its losses."""
    images, scores = people.group(config.group, rng)
    is_moved = rng.random() < config.moved_share
    images.requires_grad_(is_moved)
    loss, parts = tree.loss(tree.logprobs(images, question), scores, sigma=config.sigma, ranked=True)
    (loss / config.groups).backward()
    losses = {f"people_{name}": value for name, value in parts.items()}
    if is_moved:
        assert images.grad is not None
        moved = moved_images(images.detach(), images.grad, rng)
        loss, parts = tree.loss(tree.logprobs(moved, question), scores, sigma=config.sigma, ranked=True)
        (0.5 / config.groups * loss).backward()
        losses["moved_error"] = parts["error"]
    return losses


def rehearse(
    learner: NanoLearner,
    tree: RatingTree,
    store: Store,
    question: str,
    config: PeopleConfig,
    rng: np.random.Generator,
    pools: Pools | None,
) -> dict[str, float]:
    """Accumulate the gradients of what no person scored: crops, ladders, a pool, words. Return their losses."""
    losses: dict[str, float] = {}
    crops, targets = dense_batch(store, config.rehearsed, GRID, rng)
    loss, parts = tree.loss(tree.logprobs(crops, question), targets.labels, sigma=RATING_SIGMA, ranked=True)
    (0.6 * loss).backward()
    losses |= {f"rehearsed_{name}": value for name, value in parts.items()}
    rungs, gaps = ladder_batch(store, config.ladders, rng)
    if len(gaps):
        loss = ladder_loss(tree.means(tree.logprobs(rungs, question)).view(-1, RUNGS), gaps)
        loss.backward()
        losses["ladder"] = float(loss.detach())
    if pools is not None and rng.random() < config.pool_share:
        candidates, labels = pools.draw(config.candidates, rng)
        loss = pool_loss(tree.means(tree.logprobs(candidates, question)), labels)
        loss.backward()
        losses["pool"] = float(loss.detach())
    counts = {"first": config.first, "local": config.local, "second": config.second}
    return losses | text_step(learner, store, rng, **counts, weight=0.8)
