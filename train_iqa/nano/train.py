"""Make the embedded `nano` checkpoint: `python -m train_iqa.nano --photos DIR --seconds 400 --out RUN`.

Stages, each resumable and logged in the run folder: dense (targets for every token of the vision tower), teach
(direct ratings and the two reasoning rounds, end to end), people (opinion scores, with `--people DIR`) and export.
Time is given in seconds, on any device. `--start nano` goes on from an existing checkpoint with the people stage
alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from train_iqa.nano.build import SIZES, build_image_processor, build_model, init_energy_meters, init_patch_embedding
from train_iqa.nano.dense import DenseConfig, DenseHeads, dense_step
from train_iqa.nano.drawn import DrawnFolder
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.language import RatingTree, Readouts
from train_iqa.nano.optimizers import SplitOptimizer, WeightAverage
from train_iqa.nano.people import Opinion, People, PeopleConfig, opinions_digest, people_step, read_opinions
from train_iqa.nano.pools import Pools, read_pools
from train_iqa.nano.rationale import make_tokenizer, nano_protocol
from train_iqa.nano.rows import RowBuilder
from train_iqa.nano.stages import TrainingStage, run_stage
from train_iqa.nano.store import BATCH, Store, Workers, pairs_digest, read_pairs
from train_iqa.nano.synthetic import HELD_OUT_REST, clean_windows, hold_out, list_photographs
from train_iqa.nano.teach import NanoLearner, TeachConfig, teach_step
from train_iqa.nano.view_weights import choose_view_weights
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.fingerprint import contents_of
from zoomiqa_reward.runs.digest import listing_digest
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import read_lines
from zoomiqa_reward.runs.outputs import copy_file, part_folder
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import say
from zoomiqa_reward.runs.provenance import provenance

FIRST_CROPS = 640
"""Crops held before the first step of a run that has a label scale already."""
SCALE_FILE = "label_scale.json"


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """The whole run."""

    photos: tuple[Path, ...]
    """Folders of clean photographs; every tenth of each folder is held out."""
    out: Path
    """Run folder; the finished checkpoint is in its `checkpoint`."""
    device: str = "cpu"
    seconds: float = 3600.0
    """Of training in all; exporting comes on top."""
    seed: int = 0
    size: str = "nano"
    """Of the model, see `build.SIZES`."""
    people: Path | None = None
    """Folder with `people.csv` (image, set, scene, mos 1..5)."""
    pairs: Path | None = None
    """Folder with 224 px restorations in `images` and their references, named alike, in `references`.

    Candidates of one image share the text before the first underscore: the people stage learns their order."""
    start: str | None = None
    """Checkpoint to go on from: the people stage alone is run."""
    hold_language: bool = False
    """In the people stage, leave the language side as it is: its words stay, and the tower alone learns."""
    choose_views: bool = False
    """Choose the mixture of views on held-out photographs; otherwise it is the protocol's."""
    workers: int = 2
    drawn: Path | None = None
    """Folder of batches that `drawn.py` fills; they take the place of this run's own workers."""
    dense_share: float = 0.36
    """Of the seconds that are not the people stage's."""
    people_share: float = 0.4
    """Of all seconds, where there are opinions and no start."""
    store_small: int = 8000
    store_large: int = 2000
    population: int = 1500
    """Crops that the label scale is fitted to."""
    save_every_s: float = 60.0
    dense: DenseConfig = field(default_factory=DenseConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    opinions: PeopleConfig = field(default_factory=PeopleConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")

    def scaled(self, share: float) -> "NanoConfig":
        """Return the same run with `share` of each step's rows, for a CPU or a toy run."""

        def part(count: int, least: int) -> int:
            return max(least, round(count * share))

        dense = replace(self.dense, crops=part(self.dense.crops, 8), quarter_crops=part(self.dense.quarter_crops, 8))
        counts = {
            name: part(getattr(self.teach, name), 1) for name in ("direct_large", "first", "first_local", "second")
        }
        least = {"groups": 1, "rehearsed": 8, "ladders": 4, "first": 2, "local": 2, "second": 1}
        rows = {name: part(getattr(self.opinions, name), count) for name, count in least.items()}
        rows["rehearsed"] = rows["rehearsed"] // 8 * 8
        return replace(
            self,
            dense=dense,
            teach=replace(self.teach, direct=part(self.teach.direct, 8), **counts),
            opinions=replace(self.opinions, **rows),
        )


FREE = ("photos", "out", "device", "seconds", "people_share", "workers", "drawn", "save_every_s", "choose_views")
"""Settings that may change when a run goes on; the photographs must be the same ones, wherever they lie."""


def bind_run(config: NanoConfig, photographs: list[Path], **more: object) -> None:
    """Claim the run's folder for these settings: `run.json` with configuration, versions, command and commit.

    more: settings of a stage's own. Raises AnotherRun (a ValueError) where another run lies there: its weights would be
    exported under this one's name.
    """
    contents = {
        "people": None if config.people is None else opinions_digest(config.people),
        "pairs": None if config.pairs is None else pairs_digest(config.pairs),
        "start": None if config.start is None else contents_of(config.start),
    }
    settings = asdict(config) | more | {"photographs": listing_digest(photographs), "contents": contents}
    bind(config.out, json.loads(json.dumps(settings, default=str)), key="config", free=FREE, facts=provenance)


def _say(text: str) -> None:
    say(f"[{time.strftime('%H:%M:%S')}] {text}")


def photographs_of(folders: tuple[Path, ...]) -> tuple[list[Path], list[Path]]:
    """Return (training, held-out) photographs of all folders. Raises ValueError for too few, see `list_photographs`."""
    parts = [hold_out(list_photographs(folder)) for folder in folders]
    return [path for paths, _ in parts for path in paths], [path for _, paths in parts for path in paths]


def build_learner(config: NanoConfig, training: list[Path]) -> tuple[NanoLearner, Any]:
    """Return what is taught, on the device, and the image processor: from the start checkpoint, or from scratch."""
    protocol, device = nano_protocol(), torch.device(config.device)
    if config.start is not None:
        checkpoint = ZoomIQA.from_pretrained(config.start, device=device, dtype="float32").checkpoint
        model, tokenizer, processor = checkpoint.model, checkpoint.tokenizer, checkpoint.image_processor
        model.requires_grad_(True)
        protocol = replace(protocol, views=checkpoint.protocol.views)  # they may have been chosen for this checkpoint
        if not (config.out / SCALE_FILE).exists():
            copy_file(Path(checkpoint.source) / SCALE_FILE, config.out / SCALE_FILE)
    else:
        tokenizer = make_tokenizer(protocol, config.seed)
        processor = build_image_processor(protocol.min_pixels, protocol.max_pixels)
        model = build_model(tokenizer, seed=config.seed, size=SIZES[config.size])
        init_patch_embedding(model.model.visual.patch_embed, clean_windows(training, config.seed))
        init_energy_meters(model.model.visual)
        model.to(device)
    torch.manual_seed(config.seed)
    width = model.config.text_config.hidden_size
    learner = NanoLearner(
        model.train(), RowBuilder(tokenizer, protocol), DenseHeads(width).to(device), Readouts(width).to(device)
    )
    return learner, processor


@contextmanager
def filled_store(config: NanoConfig, workers: Workers | DrawnFolder) -> Iterator[Store]:
    """Give a store that holds its population and the first whole images; the label scale is in the run folder."""
    store = Store(
        torch.device(config.device), small=config.store_small, large=config.store_large, population=config.population
    )
    scale_file = config.out / SCALE_FILE
    if scale_file.exists():
        store.use_scale(LabelScale.load(scale_file))
    if config.pairs is not None:
        pairs = read_pairs(config.pairs)
        for start in range(0, len(pairs), BATCH):
            store.add_small(pairs[start : start + BATCH], known_kinds=False)
        _say(f"{len(pairs)} restorations from {config.pairs}")
    # A run that brings its label scale needs no population, only crops to begin with.
    enough = min(FIRST_CROPS if store.scale is not None else config.population, config.store_small)
    while store.scale is None or store.count < enough or not store.ready:
        store.fill(workers, seconds=1.0)
        if isinstance(workers, DrawnFolder):
            workers.require_more()
    if not scale_file.exists():
        store.scale.save(scale_file)
    yield store


def stages_of(
    config: NanoConfig, learner: NanoLearner, store: Store, opinions: Sequence[Opinion] | None = None
) -> list[TrainingStage]:
    """Return the stages of a run, in order; `opinions` replaces what `config.people` holds."""
    people = config.people is not None
    people_seconds = config.seconds * (1.0 if config.start else config.people_share) if people else 0.0
    rest = config.seconds - people_seconds
    tree, model = RatingTree(learner.model, learner.builder), learner.model
    heads = list(learner.heads.named_parameters(prefix="heads"))
    tower = [*learner.tower.named_parameters(), *heads]
    language = [(name, parameter) for name, parameter in model.named_parameters() if "visual" not in name]
    parts = {"model": model, "heads": learner.heads}
    if learner.readouts is not None:
        language += learner.readouts.named_parameters(prefix="readouts")
        parts["readouts"] = learner.readouts

    def stage(
        name: str, seconds: float, step: Any, rates: tuple[float, float], decay: float, floor: float
    ) -> TrainingStage:
        optimizers = {"tower": (SplitOptimizer(tower, weight_decay=decay), rates[0])}
        held = [parameter for _, parameter in language] if name == "people" and config.hold_language else []
        if not held:
            optimizers["language"] = (SplitOptimizer(language, weight_decay=decay), rates[1])
        return TrainingStage(
            name=name, seconds=seconds, step=step, parts=parts, floor=floor, seed=config.seed, optimizers=optimizers,
            held=held,
            average=None if name == "dense" else WeightAverage(model.parameters()),
            warmup=20 if name == "people" else 80,
        )  # fmt: skip

    stages = []
    if config.start is None:
        dense, teach = config.dense, config.teach
        stages.append(stage(
            "dense", rest * config.dense_share, lambda rng: dense_step(learner.tower, learner.heads, store, dense, rng),
            (dense.learning_rate, 0.0), dense.weight_decay, 0.2,
        ))  # fmt: skip
        stages.append(stage(
            "teach", rest * (1 - config.dense_share), lambda rng: teach_step(learner, tree, store, teach, rng),
            (0.5 * teach.learning_rate, teach.learning_rate), teach.weight_decay, 0.02,
        ))  # fmt: skip
    if config.people is not None:
        opinions, settings = opinions or read_opinions(config.people), config.opinions
        people_images = People(opinions, store.device)
        _say(f"{len(opinions)} images with people's scores")
        candidates = pools_of(config, store)
        # Read-outs that are random, or that nothing teaches, would teach the tower what they ask for.
        fresh = config.start is not None or config.hold_language
        taught = replace(learner, readouts=None) if fresh else learner
        stages.append(stage(
            "people", people_seconds,
            lambda rng: people_step(taught, tree, people_images, store, settings, rng, candidates),
            (0.7 * settings.learning_rate, settings.learning_rate), settings.weight_decay, 0.03,
        ))  # fmt: skip
    return stages


def pools_of(config: NanoConfig, store: Store) -> Pools | None:
    """Return the pools that `config.pairs` holds, None where it holds none."""
    pools = read_pools(config.pairs) if config.pairs is not None else []
    if not pools:
        return None
    assert store.scale is not None
    _say(f"{len(pools)} pools of candidates from {config.pairs}")
    return Pools(pools, store.scale, store.device)


def make_nano(config: NanoConfig, opinions: Sequence[Opinion] | None = None) -> Path:
    """Run what is missing of all stages and return the checkpoint's folder.

    opinions: those of `config.people` that are learned from; by default all.

    Raises ValueError where there is nothing to run, for folders that hold too little, and for a run's folder in which
    another process trains.
    """
    if config.start is not None and config.people is None:
        raise ValueError(f"start={config.start}: goes on with the people stage, which needs `people` (--people DIR)")
    # All that is read is read once before anything is made: a wrong path must not cost hours.
    training, held_out = photographs_of(config.photos)
    if config.people is not None:
        opinions = opinions or read_opinions(config.people)
    if config.pairs is not None:
        read_pairs(config.pairs)
    if config.choose_views and not held_out:
        raise ValueError(
            "choose_views needs photographs that are held out, every tenth of a folder: each folder here has fewer "
            f"than {HELD_OUT_REST + 1}; put the photographs into one folder"
        )
    with locked(config.out):
        bind_run(config, [*training, *held_out])
        _say(f"{len(training)} photographs to train on, {len(held_out)} held out")
        with source_of(config, training) as workers:
            learner, processor = build_learner(config, training)
            size = sum(parameter.numel() for parameter in learner.model.parameters())
            _say(f"model {size / 1e6:.2f} M parameters, vocabulary {len(learner.builder.tokenizer)}, {config.device}")
            with filled_store(config, workers) as store:
                for stage in stages_of(config, learner, store, opinions):
                    steps = run_stage(stage, config.out / stage.name, store, workers, save_every_s=config.save_every_s)
                    _say(f"{stage.name}: {steps} steps")
        return finish(config, learner, processor, held_out)


def source_of(config: NanoConfig, training: list[Path], **shares: float) -> Workers | DrawnFolder:
    """Return what a run's images come from: its own workers, or the folder that it was given; shares: of workers.

    A run that goes on draws other images than before.
    """
    if config.drawn:
        return DrawnFolder(config.drawn)
    saved = sum(len(read_lines(file)) for file in config.out.glob("*/log.jsonl"))
    return Workers(training, count=config.workers, seed=config.seed, stream=saved, **shares)


def finish(config: NanoConfig, learner: NanoLearner, processor: Any, held_out: list[Path]) -> Path:
    """Write the checkpoint, its label scale and its protocol; return its folder."""
    checkpoint, scale_file = config.out / "checkpoint", config.out / SCALE_FILE
    export(learner.model.cpu().eval(), learner.builder.tokenizer, processor, scale_file, checkpoint)
    protocol = learner.builder.protocol
    protocol.save(checkpoint)
    if config.choose_views:
        scale = LabelScale.load(scale_file)
        views = choose_view_weights(checkpoint, held_out, scale, config.out, seed=config.seed, limit=10)
        protocol = replace(protocol, views=views)
        protocol.save(checkpoint)
    _say(f"done: {checkpoint}")
    return checkpoint


def export(model: torch.nn.Module, tokenizer: Any, image_processor: Any, scale_file: Path, folder: Path) -> None:
    """Write the checkpoint in transformers' layout: safetensors in float16, tokenizer, image processor, label scale."""
    part_folder(folder)
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    model.float()
    copy_file(scale_file, folder / SCALE_FILE)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(prog="python -m train_iqa.nano", description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="run folder (resumed if it exists)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--seconds", type=float, default=3600.0, help="time of training, all stages together")
    parser.add_argument("--people", type=Path, help="folder with people.csv: image, set, scene, mos 1..5")
    parser.add_argument("--pairs", type=Path, help="folder with restorations in images/ and references/, 224 px")
    parser.add_argument("--start", help="checkpoint that the people stage alone goes on from")
    parser.add_argument("--hold-language", action="store_true", help="teach the tower alone in the people stage")
    parser.add_argument(
        "--choose-views", action="store_true", help="choose the mixture of views on held-out photographs"
    )
    parser.add_argument(
        "--drawn", type=Path, help="folder of batches, see train_iqa.nano.drawn (default: draws its own)"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        help=f"largest one of the people stage, for the language side (default: {PeopleConfig.learning_rate:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--size", choices=sorted(SIZES), default="nano", help="size of the model")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw images")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on a CPU")
    parser.add_argument("--rows-scale", type=float, help="factor of a step's rows (default: 1 on cuda, 0.1 on a CPU)")
    args = parser.parse_args(argv)
    return run_program("train_iqa.nano", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    amounts = (args.seconds, *(given for given in (args.rows_scale, args.learning_rate) if given is not None))
    if not all(amount > 0 for amount in amounts) or min(args.threads, args.workers) < 1:
        raise ValueError(
            f"--seconds {args.seconds:g}, --rows-scale {args.rows_scale}, --learning-rate {args.learning_rate}: must "
            f"be above 0; --threads {args.threads}, --workers {args.workers}: must be at least 1"
        )
    find_device(args.device)
    torch.set_num_threads(args.threads)
    config = NanoConfig(
        photos=tuple(args.photos), out=args.out, device=args.device, seconds=args.seconds, people=args.people,
        pairs=args.pairs, start=args.start, choose_views=args.choose_views, seed=args.seed, size=args.size,
        workers=args.workers, hold_language=args.hold_language, drawn=args.drawn,
    )  # fmt: skip
    if args.learning_rate is not None:
        config = replace(config, opinions=replace(config.opinions, learning_rate=args.learning_rate))
    share = args.rows_scale if args.rows_scale is not None else 0.1 if args.device == "cpu" else 1.0
    make_nano(config.scaled(share))
    return 0


if __name__ == "__main__":
    sys.exit(main())
