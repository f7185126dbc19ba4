"""The stage that teaches words and boxes alone: `python -m train_iqa.nano.words --start nano --photos DIR --out RUN`.

The vision tower is held, so each view of an image is read once and its tokens are kept. The language side learns both
rounds, most of them of local damage, because boxes take longest to learn. Two things keep it true to the start.
`direct` learns the start's own distribution of ratings on crops and whole images. The ratings of the words are the
start's `direct` ratings, so that `reason` says what `direct` has learned from people.
"""

import argparse
import copy
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from train_iqa.nano.degradations import DamageRecord
from train_iqa.nano.dense import dense_batch
from train_iqa.nano.language import RatingTree, row_tokens, rows_loss
from train_iqa.nano.optimizers import SplitOptimizer, WeightAverage
from train_iqa.nano.rows import Grid, RowBuilder
from train_iqa.nano.stages import TrainingStage, run_stage
from train_iqa.nano.store import GRID, Store, StoredImage
from train_iqa.nano.teach import (
    NanoLearner,
    as_float,
    drawn_from,
    grid_of,
    second_step,
    token_truth,
    varied,
    zooming_images,
)
from train_iqa.nano.train import (
    NanoConfig,
    bind_run,
    build_learner,
    filled_store,
    finish,
    photographs_of,
    source_of,
)
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.parts import WindowTower
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import say

KEPT_WEIGHT = 6.0
"""Of the divergence of `direct` from the start's."""
BOX_WEIGHT = 5.0
BOX_SIGMA = 0.1
"""Of the bell about an edge. A wide bell moves the likeliest box, which an answer names, to the middle of what is
likely: with 0.02 the likeliest digits had an IoU of .51, and the median of 64 sampled boxes one of .56."""
LARGEST_CUT, LEAST_SHARE = 0.35, 0.03
"""Of a view, what is cut off at most at each side; and what a box fills at least of what remains."""
ROWS = 16
"""Of one length, read at once."""
READOUT_FACTOR = 10.0
"""Learning rate of the read-outs, which begin at random, over the language side's."""
VIEWS = 2
"""Of each stored image."""


Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Rows of one step."""

    first: int = 4
    local: int = 14
    """More first rounds, of locally damaged images alone."""
    short: int = 32
    """Rows that name box and rating at once, of locally damaged images: a quarter of the work of a whole answer."""
    second: int = 4
    kept: int = 16
    """Crops whose `direct` ratings must stay; a multiple of 8."""
    kept_whole: int = 4
    """Whole images whose `direct` ratings must stay."""
    bfloat16: bool = False
    """Compute in bfloat16 on a CPU; only a CPU that has it gains."""
    learning_rate: float = 4e-4
    """Peak, after 20 steps; cosine to 2 %."""
    weight_decay: float = 0.02


@dataclass(frozen=True)
class ReadImage:
    """A view of a stored image that the tower has read."""

    tokens: Tensor
    """(tokens, width), float32."""
    grid: Grid
    record: DamageRecord


def moved(read: ReadImage, rng: np.random.Generator) -> ReadImage:
    """Return a crop of a view, mirrored or not: its tokens are cut and not read again, so it costs nothing.

    Without it the language side learns boxes by heart. What remains of the box is at least `LEAST_SHARE` of the crop.
    The tower has read these tokens beside those that are cut off, and unmirrored; that is the price.
    """
    assert read.record.box is not None
    tokens, box = read.tokens.view(*read.grid, -1), read.record.box
    cut = rng.uniform(0, LARGEST_CUT, 4) * np.array([1, 1, -1, -1]) + np.array([0, 0, 1, 1])
    left, top, right, bottom = (
        round(float(edge) * side) for edge, side in zip(cut, (read.grid[1], read.grid[0]) * 2, strict=True)
    )
    crop = (left / read.grid[1], top / read.grid[0], right / read.grid[1], bottom / read.grid[0])
    inside = within(box, crop)
    if inside is not None:
        tokens, box = tokens[top:bottom, left:right], inside
    if rng.random() < 0.5:
        tokens, box = tokens.flip(1), (1 - box[2], box[1], 1 - box[0], box[3])
    if rng.random() < 0.5:
        tokens, box = tokens.flip(0), (box[0], 1 - box[3], box[2], 1 - box[1])
    grid = tokens.shape[0], tokens.shape[1]
    return ReadImage(tokens.flatten(0, 1), grid, replace(read.record, box=box))


def within(box: Box, crop: Box) -> Box | None:
    """Return the box in shares of a crop of the image; None where it fills less than `LEAST_SHARE` of the crop.

    >>> within((0.25, 0.0, 0.75, 0.5), (0.5, 0.0, 1.0, 1.0))
    (0.0, 0.0, 0.5, 0.5)
    """
    sides = crop[2] - crop[0], crop[3] - crop[1]
    if min(sides) <= 0:
        return None
    left, top, right, bottom = (
        min(1.0, max(0.0, (edge - start) / side))
        for edge, start, side in zip(box, crop[:2] * 2, sides * 2, strict=True)
    )
    return (left, top, right, bottom) if (right - left) * (bottom - top) >= LEAST_SHARE else None


class Reader:
    """The held tower's tokens of views of stored images: each view is drawn and read once."""

    def __init__(self, tower: WindowTower) -> None:
        self.tower = tower
        self._views: WeakKeyDictionary[StoredImage, list[ReadImage]] = WeakKeyDictionary()

    @torch.no_grad()
    def read(self, stored: StoredImage, rng: np.random.Generator) -> ReadImage:
        """Return one of the `VIEWS` views of an image, mirrored or not, at one of many sizes."""
        views, chosen = self._views.setdefault(stored, []), int(rng.integers(0, VIEWS))
        if chosen >= len(views):
            image, record = varied(stored, rng)
            views.append(ReadImage(row_tokens(self.tower, [image]).float(), grid_of(image), record))
        return views[min(chosen, len(views) - 1)]


class Start:
    """What the language side was before the stage: its `direct` ratings are labels and must stay."""

    def __init__(self, learner: NanoLearner) -> None:
        # The tower is held, so only the language side is copied.
        held = {id(learner.tower): learner.tower}
        self.tree = RatingTree(copy.deepcopy(learner.model, held).requires_grad_(False).eval(), learner.builder)
        self.question = learner.builder.protocol.questions[0]
        self._labels: WeakKeyDictionary[StoredImage, float] = WeakKeyDictionary()

    @torch.no_grad()
    def label(self, stored: StoredImage) -> float:
        """Return the rating that words give an image: the start's `direct` rating."""
        if stored not in self._labels:
            logprobs = self.tree.logprobs(as_float(stored.image)[None], self.question)
            self._labels[stored] = float(self.tree.means(logprobs)[0])
        return self._labels[stored]

    def relabelled(self, images: list[StoredImage]) -> list[StoredImage]:
        """Return the images with the ratings that words give them."""
        return [replace(image, label=self.label(image)) for image in images]

    def divergence(self, tree: RatingTree, images: Tensor, question: str) -> Tensor:
        """Return the mean Kullback-Leibler divergence of `tree`'s ratings from the start's for (B, 3, H, W) images.

        What `tree` puts on no rating counts as lost.
        """
        with torch.no_grad():
            wanted = self.tree.logprobs(images, question).log_softmax(1)
        return (wanted.exp() * (wanted - tree.logprobs(images, question))).sum(1).mean()


def first_step(
    learner: NanoLearner,
    start: Start,
    reader: Reader,
    chosen: list[StoredImage],
    rng: np.random.Generator,
    *,
    short: bool,
) -> dict[str, float]:
    """Accumulate the gradients of the images' first rounds, and return their losses."""
    views = [reader.read(stored, rng) for stored in chosen]
    views = [moved(view, rng) if view.record.box is not None else view for view in views]
    pairs = sorted(zip(views, chosen, strict=True), key=lambda pair: len(pair[0].tokens))
    losses: dict[str, float] = {}
    for at in range(0, len(pairs), ROWS):  # rows of one length are padded little
        chunk = pairs[at : at + ROWS]
        rows = [
            learner.builder.first(read.record, read.grid, start.label(stored), rng, short=short)
            for read, stored in chunk
        ]
        tokens = torch.cat([read.tokens for read, _ in chunk])
        truth = torch.cat([token_truth(read.record, read.grid) for read, _ in chunk]).to(tokens)
        loss, parts = rows_loss(
            learner.model, learner.builder, rows, tokens, learner.readouts, truth, box_weight=BOX_WEIGHT
        )
        (len(chunk) / len(pairs) * loss).backward()
        for name, value in parts.items():
            key = f"{'short' if short else 'first'}_{name}"
            losses[key] = losses.get(key, 0.0) + len(chunk) / len(pairs) * value
    return losses


def words_step(
    learner: NanoLearner,
    tree: RatingTree,
    start: Start,
    reader: Reader,
    store: Store,
    config: WordsConfig,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Accumulate the gradients of one step and return its losses."""
    local = store.whole(local=True)
    chosen = drawn_from(store.whole_images, config.first, rng) + drawn_from(local, config.local, rng)
    losses = first_step(learner, start, reader, chosen, rng, short=False)
    if config.short:
        losses |= first_step(learner, start, reader, drawn_from(local, config.short, rng), rng, short=True)
    if zooming := zooming_images(store, config.second, rng):
        losses |= second_step(learner, start.relabelled(zooming), rng)
    question = learner.builder.question(rng)
    kept = [dense_batch(store, config.kept, GRID, rng)[0]]
    kept += [as_float(image.image)[None] for image in drawn_from(store.whole_images, config.kept_whole, rng)]
    for images_kept in kept:
        divergence = start.divergence(tree, images_kept, question)
        (KEPT_WEIGHT / len(kept) * divergence).backward()
        losses["kept"] = losses.get("kept", 0.0) + float(divergence.detach()) / len(kept)
    return losses


def words_stage(config: NanoConfig, words: WordsConfig, learner: NanoLearner, store: Store) -> TrainingStage:
    """Return the stage; the tower gets no gradient from here on."""
    for _, parameter in learner.tower.named_parameters():
        parameter.requires_grad_(False)
    builder = RowBuilder(learner.builder.tokenizer, learner.builder.protocol, box_sigma=BOX_SIGMA)
    learner = replace(learner, builder=builder)
    model, tree = learner.model, RatingTree(learner.model, builder)
    start, reader = Start(learner), Reader(learner.tower)
    language = [(name, parameter) for name, parameter in model.named_parameters() if "visual" not in name]
    assert learner.readouts is not None

    def step(rng: np.random.Generator) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=words.bfloat16):
            return words_step(learner, tree, start, reader, store, words, rng)

    readouts = learner.readouts.named_parameters(prefix="readouts")
    optimizers = {
        name: (SplitOptimizer(parameters, weight_decay=words.weight_decay), factor * words.learning_rate)
        for name, parameters, factor in (("language", language, 1.0), ("readouts", readouts, READOUT_FACTOR))
    }
    return TrainingStage(
        name="words", seconds=config.seconds, seed=config.seed, warmup=20,
        step=step,
        optimizers=optimizers,
        parts={"model": model, "readouts": learner.readouts},
        average=WeightAverage(parameter for _, parameter in language),
    )  # fmt: skip


def teach_words(config: NanoConfig, words: WordsConfig) -> Path:
    """Run what is missing of the stage and return the checkpoint's folder; `config.start` is where it begins.

    Raises ValueError for folders that hold too little, and for a run's folder in which another process trains.
    """
    training, held_out = photographs_of(config.photos)
    with locked(config.out):
        bind_run(config, [*training, *held_out], words=asdict(words))
        with source_of(config, training, large_share=0.85, local_share=0.75) as workers:
            learner, processor = build_learner(config, training)
            with filled_store(config, workers) as store:
                stage = words_stage(config, words, learner, store)
                steps = run_stage(stage, config.out / "words", store, workers, save_every_s=config.save_every_s)
                say(f"words: {steps} steps")
        return finish(config, learner, processor, held_out)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(prog="python -m train_iqa.nano.words", description=__doc__)
    parser.add_argument("--start", required=True, help="checkpoint that the stage begins with: nano or a folder")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/words"), help="run folder (resumed if it exists)")
    parser.add_argument(
        "--drawn", type=Path, help="folder of batches, see train_iqa.nano.drawn (default: draws its own)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--seconds", type=float, default=2400.0, help="time of training")
    parser.add_argument(
        "--learning-rate", type=float, default=WordsConfig.learning_rate, help="largest one of the schedule"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compute in bfloat16 on a CPU that has it (avx512_bf16 in /proc/cpuinfo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw images")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on a CPU")
    args = parser.parse_args(argv)
    return run_program("train_iqa.nano.words", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    if not (args.seconds > 0 and args.learning_rate > 0) or min(args.threads, args.workers) < 1:
        raise ValueError(
            f"--seconds {args.seconds:g}, --learning-rate {args.learning_rate:g}: must be above 0; "
            f"--threads {args.threads}, --workers {args.workers}: must be at least 1"
        )
    find_device(args.device)
    torch.set_num_threads(args.threads)
    config = NanoConfig(
        photos=tuple(args.photos), out=args.out, device=args.device, seconds=args.seconds, start=args.start,
        seed=args.seed, workers=args.workers, drawn=args.drawn, store_small=64, store_large=8000,
    )  # fmt: skip
    teach_words(config, WordsConfig(learning_rate=args.learning_rate, bfloat16=args.bfloat16))
    return 0


if __name__ == "__main__":
    sys.exit(main())
