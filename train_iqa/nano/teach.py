"""Teach the language side of a small Qwen2.5-VL: `direct` ratings and the two reasoning rounds, on one mixture.

The vision tower is frozen here, so its tokens are computed once (`bank.py`) and a step costs the language model
alone. An auxiliary read-out makes the middle layer say of each image token where it lies and whether the damage
covers it: rotary positions are relative, and without it a small model needs far longer to learn coordinates.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from train_iqa.nano.build import MERGE
from train_iqa.nano.number_targets import FRACTIONS, RATINGS, bell, draw_path
from train_iqa.nano.optimizers import SplitOptimizer
from train_iqa.nano.pretrain import cosine_lr
from train_iqa.nano.rationale import answer1, answer2
from train_iqa.nano.sample_bank import Entry
from zoomiqa_reward.model.turns import Prompted, round1, round2
from zoomiqa_reward.protocol import Protocol
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans

AUX_LAYER = 3
EDGE_LAYER = 4
NO_IMAGE = torch.empty(0)  # rows are built from cached features; the request needs only its texts


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Supervised rows for the language side."""

    steps: int = 700
    direct_rows: int = 12
    """224 px crops with a direct rating, a step."""
    direct_large_rows: int = 4
    """Whole pictures with a direct rating, a step."""
    round1_rows: int = 6
    local_rows: int = 4
    """More round-1 rows, of locally damaged pictures alone: boxes take longest to learn."""
    round2_rows: int = 2
    learning_rate: float = 6e-4
    """Peak; warm-up 60 steps, cosine to 2 %."""
    weight_decay: float = 0.02
    rating_sigma: float = 0.15
    """Width of the bell about the rating."""
    box_sigma: float = 0.02
    aux_weight: float = 0.5
    edge_weight: float = 3.0
    """Weight of the box edges read from the middle layers as plain numbers."""
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training row."""

    ids: list[int]
    prompt_length: int
    images: list[tuple[Tensor, tuple[int, int]]]
    soft: dict[int, tuple[list[int], list[float], bool]]
    """Position of a target token -> (token ids, probabilities, is it a digit of a box)."""
    hard: list[int]
    """Positions of the target tokens that are exact."""
    entry: Entry
    edges: dict[int, float]
    """Position of the first decimal of a box edge -> the true edge, 0..1."""
    is_round1: bool = False


class Readouts(nn.Module):
    """Linear read-outs of middle layers, thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(width, 3)
        """Of an image token: x, y, and whether damage covers it."""
        self.edge = nn.Linear(width, 1)
        """Before the first decimal of a box edge: that edge, 0..1. A number is learned sooner than its digits."""


class RowBuilder:
    """Turns entries into rows with the very requests that inference sends."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, protocol: Protocol, config: TeachConfig) -> None:
        self.tokenizer, self.protocol, self.config = tokenizer, protocol, config
        self.character_ids = {c: tokenizer.convert_tokens_to_ids(c) for c in "0123456789."}

    def _prompt_ids(self, prompted: Prompted, grids: list[tuple[int, int]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(list(prompted.messages), tokenize=False, add_generation_prompt=True)
        pieces = text.split("<|image_pad|>")
        for k, (rows, columns) in enumerate(grids):
            pieces[k] += "<|image_pad|>" * (rows * columns)
        return self.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]

    def _row(
        self,
        prompt: list[int],
        completion: str,
        numbers: list[tuple[list[dict[str, float]], bool]],
        images: list[tuple[Tensor, tuple[int, int]]],
        entry: Entry,
        *,
        only_numbers: bool = False,
        is_round1: bool = False,
    ) -> Row:
        encoded = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
        starts = {offset[0]: k for k, offset in enumerate(encoded["offset_mapping"])}
        answer = completion.index("<answer>")
        spans = [m.start() + answer for m in re.finditer(r"\d\.\d\d", completion[answer:])]
        soft: dict[int, tuple[list[int], list[float], bool]] = {}
        exact: list[int] = []  # the decimal points
        edges: dict[int, float] = {}
        for number, (span, (steps, is_box)) in enumerate(zip(spans, numbers, strict=True)):
            if is_box and entry.record.box is not None:
                edges[len(prompt) + starts[span + 2]] = entry.record.box[number]
            for k, step in enumerate(steps):
                if len(step) > 1:
                    ids = [self.character_ids[c] for c in step]
                    soft[len(prompt) + starts[span + k]] = (ids, list(step.values()), is_box)
                else:
                    exact.append(len(prompt) + starts[span + k])
        ids = [*prompt, *encoded["input_ids"]]
        if not only_numbers:
            ids.append(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        # Without the points as targets `direct` leaks probability there, up to more than half of it.
        hard = exact if only_numbers else [k for k in range(len(prompt), len(ids)) if k not in soft]
        return Row(
            ids=ids,
            prompt_length=len(prompt),
            images=images,
            soft=soft,
            hard=hard,
            entry=entry,
            edges=edges,
            is_round1=is_round1,
        )

    def _rating(self, entry: Entry, rng: np.random.Generator) -> tuple[str, list[dict[str, float]]]:
        return draw_path(RATINGS, bell(RATINGS, entry.label, self.config.rating_sigma), rng)

    def _question(self, rng: np.random.Generator) -> str:
        questions = self.protocol.questions
        return questions[0] if rng.random() < 0.7 else questions[int(rng.integers(0, len(questions)))]

    def direct(self, entry: Entry, rng: np.random.Generator) -> Row:
        """Return a row whose only targets are the digits of the rating."""
        prompt = self._prompt_ids(round1(self.protocol, NO_IMAGE, self._question(rng)), [entry.grid])
        text, steps = self._rating(entry, rng)
        images = [(entry.features, entry.grid)]
        return self._row(prompt, self.protocol.direct_prefix + text, [(steps, False)], images, entry, only_numbers=True)

    def _first_answer(
        self, entry: Entry, rng: np.random.Generator
    ) -> tuple[str, list[tuple[list[dict[str, float]], bool]]]:
        numbers: list[tuple[list[dict[str, float]], bool]] = []
        box_texts = None
        if entry.record.box is not None:
            drawn = [draw_path(FRACTIONS, bell(FRACTIONS, v, self.config.box_sigma), rng) for v in entry.record.box]
            box_texts = tuple(text for text, _ in drawn)
            numbers = [(steps, True) for _, steps in drawn]
        rating, steps = self._rating(entry, rng)
        return answer1(entry.record, entry.label, rating, box_texts), [*numbers, (steps, False)]

    def first(self, entry: Entry, rng: np.random.Generator) -> Row:
        """Return round 1's row."""
        prompt = self._prompt_ids(round1(self.protocol, NO_IMAGE, self._question(rng)), [entry.grid])
        completion, numbers = self._first_answer(entry, rng)
        return self._row(prompt, completion, numbers, [(entry.features, entry.grid)], entry, is_round1=True)

    def second(self, entry: Entry, rng: np.random.Generator) -> Row:
        """Return round 2's row; the entry has a crop. The quoted round 1 rates with an error, or it would be copied."""
        assert entry.crop is not None
        question = self._question(rng)
        guess = float(np.clip(entry.label + rng.normal(0, 0.5), 1, 5))
        quoted, _ = self._first_answer(
            Entry(features=entry.features, grid=entry.grid, label=guess, record=entry.record), rng
        )
        request = round2(self.protocol, NO_IMAGE, NO_IMAGE, quoted, question)
        prompt = self._prompt_ids(request, [entry.grid, entry.crop[1]])
        rating, steps = self._rating(entry, rng)
        completion = answer2(entry.record, entry.label, rating, guess)
        return self._row(prompt, completion, [(steps, False)], [(entry.features, entry.grid), entry.crop], entry)


def token_truth(entry: Entry) -> Tensor:
    """Return (tokens, 3): x and y of each token's centre in 0..1 and whether damage covers it (0 or 1)."""
    rows, columns = entry.grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    damaged = torch.full_like(x, float(bool(entry.record.steps)))
    if entry.record.box is not None:
        left, top, right, bottom = entry.record.box
        damaged = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).float()
    return torch.stack([x, y, damaged], dim=-1).reshape(-1, 3)


def rows_loss(
    model: Qwen2_5_VLForConditionalGeneration, readouts: Readouts, rows: list[Row], config: TeachConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of right-padded rows and its parts."""
    length, image_id = max(len(r.ids) for r in rows), model.config.image_token_id
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row.ids)], mask[k, : len(row.ids)] = torch.tensor(row.ids), 1
    is_image = (ids == image_id) & mask.bool()
    features = torch.cat([f for row in rows for f, _ in row.images]).float()
    grids = torch.tensor([[1, MERGE * g[0], MERGE * g[1]] for row in rows for _, g in row.images])
    assert int(is_image.sum()) == len(features), "image tokens and image features differ"
    positions, _ = model.model.get_rope_index(ids, is_image.int(), image_grid_thw=grids, attention_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
        out = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        hidden = out.last_hidden_state
        hard = [(k, p) for k, row in enumerate(rows) for p in row.hard]
        soft = [(k, p, *row.soft[p]) for k, row in enumerate(rows) for p in row.soft]
        where = torch.tensor([(k, p - 1) for k, p in hard] + [(s[0], s[1] - 1) for s in soft])
        logits = model.lm_head(hidden[where[:, 0], where[:, 1]]).float()
        aux_rows = [k for k, row in enumerate(rows) if row.is_round1]
        aux_out = readouts.tokens(out.hidden_states[AUX_LAYER]).float() if aux_rows else None
        edges = [(k, p, v) for k, row in enumerate(rows) for p, v in row.edges.items()]
        if edges:
            at = torch.tensor([(k, p - 1) for k, p, _ in edges])
            edge_out = readouts.edge(out.hidden_states[EDGE_LAYER][at[:, 0], at[:, 1]]).float()[:, 0]
    logp = logits.log_softmax(-1)
    parts: dict[str, Tensor] = {}
    if hard:
        targets = torch.tensor([rows[k].ids[p] for k, p in hard])
        parts["text"] = nn.functional.nll_loss(logp[: len(hard)], targets)
    for name, wanted in (("rating", False), ("box", True)):
        losses = [-(logp[len(hard) + j, s[2]] * torch.tensor(s[3])).sum() for j, s in enumerate(soft) if s[4] is wanted]
        if losses:
            parts[name] = torch.stack(losses).mean()
    if aux_out is not None:
        guesses = torch.cat([aux_out[k][is_image[k]] for k in aux_rows])
        truth = torch.cat([token_truth(rows[k].entry) for k in aux_rows])
        place = nn.functional.mse_loss(guesses[:, :2], truth[:, :2])
        cover = nn.functional.binary_cross_entropy_with_logits(guesses[:, 2], truth[:, 2])
        parts["aux"] = config.aux_weight * (2 * place + cover)
    if edges:
        wanted_edges = torch.tensor([v for _, _, v in edges], dtype=torch.float32)
        parts["edge"] = config.edge_weight * nn.functional.l1_loss(edge_out, wanted_edges)
    return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}


def teach(
    model: Qwen2_5_VLForConditionalGeneration,
    builder: RowBuilder,
    small: list[Entry],
    large: list[Entry],
    folder: Path,
) -> None:
    """Train the language side in place; continues from `folder/state.pt`, logs to `folder/log.jsonl`."""
    config, run = builder.config, RunFolder(folder)
    torch.manual_seed(config.seed)
    readouts = Readouts(model.config.text_config.hidden_size)
    local = [e for e in large if e.record.box is not None]
    zooming = [e for e in large if e.crop is not None]
    named = [(n, p) for n, p in model.named_parameters() if "visual" not in n]
    named += readouts.named_parameters(prefix="readouts")
    optimizer = SplitOptimizer(named, weight_decay=config.weight_decay)
    running = RunningMeans()
    parts = {"model": model, "readouts": readouts, "optimizer": optimizer, "running": running}
    start = run.load(parts)
    model.train()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="teaching", mininterval=5)
    began = time.time()
    for step in bar:
        rng = np.random.default_rng([config.seed, 5, step])

        def pick(entries: list[Entry], count: int, rng: np.random.Generator = rng) -> list[Entry]:
            return [entries[k] for k in rng.integers(0, len(entries), count)] if entries else []

        # Rows of like length go together, so little of a batch is padding.
        groups = [
            [builder.direct(e, rng) for e in pick(small, config.direct_rows)],
            [builder.direct(e, rng) for e in pick(large, config.direct_large_rows)]
            + [builder.first(e, rng) for e in pick(large, config.round1_rows)]
            + [builder.first(e, rng) for e in pick(local, config.local_rows)],
            [builder.second(e, rng) for e in pick(zooming, config.round2_rows)],
        ]
        for name, rows in zip(("direct", "first", "second"), groups, strict=True):
            if not rows:
                continue
            loss, values = rows_loss(model, readouts, rows, config)
            loss.backward()
            running.update({f"{name}_{key}": value for key, value in values.items()})
        optimizer.step(cosine_lr(step, config.steps, config.learning_rate))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            run.log({"step": step + 1, "seconds": time.time() - began, **running.means})
            run.save(step + 1, parts)
    model.eval()
