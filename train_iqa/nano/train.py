"""Make the embedded `nano` checkpoint from scratch: `python -m train_iqa.nano --images DIR --out RUN`.

Stages, each resumable and logged in the run folder: samples (degraded photographs with labels), pretrain (dense
targets for the vision tower), teach (direct ratings and the two reasoning rounds), views (how the scales of an image
combine, chosen on held-out photographs) and export. `--steps-scale 0.01` makes a toy run of everything in minutes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import transformers

from train_iqa.nano.build import (
    SIZES,
    build_image_processor,
    build_model,
    build_tokenizer,
    init_energy_meters,
    init_patch_embedding,
)
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.pretrain import CropBatches, PretrainConfig, pretrain
from train_iqa.nano.rationale import answer1, answer2, nano_protocol
from train_iqa.nano.sample_bank import build_bank
from train_iqa.nano.synthetic import Sample, list_photographs, read_samples, split_photographs, write_samples
from train_iqa.nano.teach import RowBuilder, TeachConfig, teach
from train_iqa.nano.view_weights import choose_view_weights
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol import Protocol

LOCAL_SHARE_SMALL, LOCAL_SHARE_LARGE = 0.2, 0.45


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """The whole run."""

    images: Path
    """Clean photographs; a seeded fifth is held out for validation."""
    out: Path
    """Run folder; the finished checkpoint is in its `checkpoint`."""
    seed: int = 0
    size: str = "nano"
    """Of the model, see `nano_model.SIZES`."""
    small_samples: int = 5120
    """224 px crops."""
    large_samples: int = 2048
    """Whole pictures of up to 448 x 448 px."""
    validation_samples: int = 512
    shard_size: int = 64
    """Samples in one file; a shard is drawn from its own seed."""
    view_photographs: int = 10
    """Held-out photographs on which the view weights are chosen."""
    workers: int = 2
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)

    def scaled(self, share: float) -> "NanoConfig":
        """Return the same run with `share` of the samples and steps."""

        def part(count: int, least: int) -> int:
            return max(least, round(count * share))

        return replace(
            self,
            small_samples=part(self.small_samples, 64),
            large_samples=part(self.large_samples, 64),
            validation_samples=part(self.validation_samples, 64),
            pretrain=replace(self.pretrain, steps=part(self.pretrain.steps, 4)),
            teach=replace(self.teach, steps=part(self.teach.steps, 4)),
        )


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def write_run_record(config: NanoConfig) -> None:
    """Write `run.json`: configuration, versions, command and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "command": sys.argv,
        "commit": commit.stdout.strip() or None,
        "dirty": bool(dirty.stdout.strip()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (config.out / "run.json").write_text(json.dumps(record, indent=1) + "\n")


def tokenizer_corpus(samples: list[Sample], scale: LabelScale, protocol: Protocol, seed: int) -> list[str]:
    """Return the prompts and answers of both rounds for each sample, which the tokenizer is trained on."""
    rng, no_image = np.random.default_rng(seed), torch.empty(0)
    texts: list[str] = []
    for sample in samples:
        label = float(scale.pseudo_mos(sample.scores[None].astype(np.float64))[0])
        box = tuple(f"{v:.2f}" for v in sample.record.box) if sample.record.box else None
        guess = float(rng.uniform(1, 5))
        first = answer1(sample.record, guess, f"{guess:.2f}", box)
        question = protocol.questions[int(rng.integers(0, len(protocol.questions)))]
        for asked in (round1(protocol, no_image, question), round2(protocol, no_image, no_image, first, question)):
            for message in asked.messages:
                texts.append(str(message["role"]) + "\n" + "".join(item.get("text", "") for item in message["content"]))
        texts += [first, answer2(sample.record, label, f"{label:.2f}", guess)]
    return texts


def make_nano(config: NanoConfig) -> Path:
    """Run what is missing of all stages and return the checkpoint's folder."""
    config.out.mkdir(parents=True, exist_ok=True)
    write_run_record(config)
    data, protocol = config.out / "data", nano_protocol()
    paths = list_photographs(config.images)
    training, validation = split_photographs(paths, config.seed)
    _say(f"{len(paths)} photographs: {len(training)} train, {len(validation)} validate")
    for name, photographs, count, offset, large, local in (
        ("train_small", training, config.small_samples, 2, False, LOCAL_SHARE_SMALL),
        ("val_small", validation, config.validation_samples, 1, False, LOCAL_SHARE_SMALL),
        ("train_large", training, config.large_samples, 4, True, LOCAL_SHARE_LARGE),
        ("val_large", validation, config.validation_samples // 2, 3, True, LOCAL_SHARE_LARGE),
    ):
        seed = config.seed * 100 + offset
        write_samples(
            data / name,
            photographs,
            count,
            seed=seed,
            large=large,
            local_share=local,
            workers=config.workers,
            shard_size=config.shard_size,
        )
    small, large = list(read_samples(data / "train_small")), list(read_samples(data / "train_large"))
    scale_file = config.out / "label_scale.json"
    if not scale_file.exists():
        LabelScale.fit(np.stack([s.scores for s in small]).astype(np.float64)).save(scale_file)
    scale = LabelScale.load(scale_file)

    tokenizer = build_tokenizer(tokenizer_corpus(large, scale, protocol, config.seed))
    image_processor = build_image_processor(protocol.min_pixels, protocol.max_pixels)
    model = build_model(tokenizer, seed=config.seed, size=SIZES[config.size])
    tower = model.model.visual
    clean = [s for s in small if s.scores[0] > 0.9][:400]
    init_patch_embedding(
        tower.patch_embed, [torch.from_numpy(s.image.astype(np.float32) / 255).permute(2, 0, 1) for s in clean]
    )
    init_energy_meters(tower)
    size = sum(p.numel() for p in model.parameters())
    _say(f"model {size / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}")

    validation_small = list(read_samples(data / "val_small"))
    pretrain(
        tower,
        image_processor,
        CropBatches(small + large, scale, config.pretrain),
        CropBatches(validation_small, scale, config.pretrain),
        config.out / "pretrain",
    )
    builder = RowBuilder(tokenizer, protocol, config.teach)
    common = {"scale": scale, "protocol": protocol, "seed": config.seed}
    bank_small = build_bank(tower, image_processor, small, mirrored=False, crops=False, **common)
    bank_large = build_bank(tower, image_processor, large, mirrored=True, crops=True, **common)
    teach(model, builder, bank_small, bank_large, config.out / "teach")

    checkpoint = config.out / "checkpoint"
    export(model, tokenizer, image_processor, scale_file, checkpoint)
    protocol.save(checkpoint)
    views = choose_view_weights(
        checkpoint, validation, scale, config.out, seed=config.seed, limit=config.view_photographs
    )
    replace(protocol, views=views).save(checkpoint)
    _say(f"done: {checkpoint}")
    return checkpoint


def export(model: torch.nn.Module, tokenizer: object, image_processor: object, scale_file: Path, folder: Path) -> None:
    """Write the checkpoint in transformers' layout: safetensors in float16, tokenizer, image processor, label scale."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,  # type: ignore[attr-defined]
    )
    processor.save_pretrained(folder)
    model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    model.float()
    shutil.copy(scale_file, folder / "label_scale.json")


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m train_iqa.nano", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="run folder (resumed if it exists)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="nano", help="of the model")
    parser.add_argument("--workers", type=int, default=2, help="processes that make samples")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of samples and steps (toy runs)")
    parser.add_argument("--pretrain-steps", type=int, default=PretrainConfig.steps, help="of the vision tower")
    parser.add_argument("--teach-steps", type=int, default=TeachConfig.steps, help="of the language side")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = NanoConfig(
        images=args.images, out=args.out, seed=args.seed, size=args.size, workers=args.workers,
        pretrain=PretrainConfig(steps=args.pretrain_steps), teach=TeachConfig(steps=args.teach_steps),
    )  # fmt: skip
    make_nano(config.scaled(args.steps_scale) if args.steps_scale != 1 else config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
