"""What the stages of nano are tested with: smooth noise for photographs, a full store, an untaught learner."""

import numpy as np
import torch
from PIL import Image

from train_iqa.nano.build import build_model, build_tokenizer
from train_iqa.nano.dense import DenseHeads
from train_iqa.nano.drawing import draw_image
from train_iqa.nano.language import Readouts
from train_iqa.nano.rationale import nano_protocol
from train_iqa.nano.rows import RowBuilder
from train_iqa.nano.store import DrawnBatch, Store
from train_iqa.nano.teach import NanoLearner


def noise_photograph(seed: int, side: int) -> Image.Image:
    """Return a square image of smooth random blocks."""
    small = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def full_store() -> Store:
    """Return a store of 16 labelled crops, with local and even damage among its few whole images."""
    rng, held = np.random.default_rng(0), Store(torch.device("cpu"), small=16, large=4, population=16)
    held.add(DrawnBatch(False, [draw_image(noise_photograph(k, 480), rng, large=False) for k in range(16)]))
    while not held.ready:
        held.add(DrawnBatch(True, [draw_image(noise_photograph(9, 480), rng, large=True)]))
    return held


def random_learner() -> NanoLearner:
    """Return a model of random weights with its row builder and read-outs."""
    protocol = nano_protocol()
    builder = RowBuilder(build_tokenizer(["user assistant " + protocol.round1.text, "0.12, 3.45"]), protocol)
    model = build_model(builder.tokenizer, seed=0)
    width = model.config.text_config.hidden_size
    torch.manual_seed(0)
    return NanoLearner(model.eval(), builder, DenseHeads(width), Readouts(width))
