"""The whole of `python -m train_iqa.nano` at toy size: it runs, resumes, and what it writes loads and rates."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from train_iqa.nano.build import CHROMA, LUMA, build_model, build_tokenizer, init_energy_meters
from train_iqa.nano.degradations import Record, Step
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.pretrain import CropBatches, PretrainConfig, pretrain
from train_iqa.nano.rationale import nano_protocol
from train_iqa.nano.sample_bank import Entry
from train_iqa.nano.synthetic import list_photographs, read_samples, split_photographs
from train_iqa.nano.teach import Readouts, RowBuilder, TeachConfig, rows_loss, token_truth
from train_iqa.nano.train import NanoConfig, make_nano
from zoomiqa_reward import ZoomIQA


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for k in range(10):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def toy(photographs, tmp_path_factory):
    return NanoConfig(
        images=photographs,
        out=tmp_path_factory.mktemp("run"),
        small_samples=4,
        large_samples=4,
        validation_samples=4,
        shard_size=2,
        view_photographs=1,
        pretrain=PretrainConfig(steps=2, batch_size=1, small_batch_size=2, save_every=1),
        teach=TeachConfig(
            steps=2, direct_rows=2, direct_large_rows=1, round1_rows=1, local_rows=1, round2_rows=1, save_every=1
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def few_candidates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_iqa.nano.view_weights.FACTORS", (2, 8))
        patch.setattr("train_iqa.nano.view_weights.INTERPOLATIONS", (("bicubic", "bicubic"),))
        yield


@pytest.fixture(scope="module")
def checkpoint(toy):
    return make_nano(toy)


def test_checkpoint_loads_by_the_common_path_and_rates(checkpoint):
    iqa = ZoomIQA.from_pretrained(str(checkpoint))
    ratings = iqa.rate([torch.rand(3, 60, 90)], strict=True)
    assert ratings.mean.shape == (1,)
    assert iqa.protocol.label_metrics == ("haarpsi", "mdsi", "vsi")
    views = iqa.protocol.views
    assert sum(views.weights) + views.whole_weight == pytest.approx(1)
    assert LabelScale.load(checkpoint / "label_scale.json")


def test_second_call_continues_and_changes_nothing(toy, checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    logs = [(toy.out / stage / "log.jsonl").read_text() for stage in ("pretrain", "teach")]
    assert make_nano(toy) == checkpoint
    assert (checkpoint / "model.safetensors").read_bytes() == weights
    assert [(toy.out / stage / "log.jsonl").read_text() for stage in ("pretrain", "teach")] == logs
    record = json.loads((toy.out / "run.json").read_text())
    assert record["config"]["small_samples"] == 4


def test_interrupted_pretraining_ends_like_an_uninterrupted_one(toy, checkpoint, tmp_path):
    """Two steps in one go, or one step, a new process' state and one more: the same weights."""
    from train_iqa.nano.build import build_image_processor

    samples = list(read_samples(toy.out / "data" / "train_small"))
    scale, processor = LabelScale.load(toy.out / "label_scale.json"), build_image_processor(784, 200704)

    def run(folder, stops):
        for stop in stops:
            tower = build_model(None, seed=0).model.visual
            config = replace(toy.pretrain, steps=2)
            batches = CropBatches(samples, scale, config)
            if stop == 1:  # stand-in for a kill: the loop ends after one step, the schedule is the full run's

                class Killed(Exception):
                    pass

                class Stopping(CropBatches):
                    def __call__(self, step):
                        if step == 1:
                            raise Killed
                        return super().__call__(step)

                with pytest.raises(Killed):
                    pretrain(tower, processor, Stopping(samples, scale, config), batches, folder)
            else:
                pretrain(tower, processor, batches, batches, folder)
        return tower.state_dict()

    one, two = run(tmp_path / "a", [2]), run(tmp_path / "b", [1, 2])
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_held_out_photographs_are_a_seeded_fifth(photographs):
    paths = list_photographs(photographs)
    training, validation = split_photographs(paths, 0)
    assert len(validation) == 2
    assert not set(training) & set(validation)
    assert split_photographs(paths, 0) == (training, validation)
    with pytest.raises(ValueError, match="at least 10"):
        list_photographs(photographs / "none")


def test_energy_meters_saturate_each_component_at_its_threshold():
    """Channel (band, t) is the sum over the band's components of that t of sat(|e| / t), e after normalisation.

    sat(u) = f(u) + f(-u) - f(u - 1) - f(-u - 1) with f(u) = silu(4 u) / 4, close to min(|u|, 1): by hand, for |u| well
    above 1 it is u - (u - 1) = 1, and for u = 0.5 it is 0.44 + (-0.06) - (-0.06) - 0.00 = 0.44.
    """
    tower = build_model(None, seed=0).model.visual
    init_energy_meters(tower)
    block, components = tower.blocks[0], LUMA + 2 * CHROMA
    block.mlp.down_proj.weight.data[:, 4 * components :] = 0
    block.mlp.down_proj.bias.data.zero_()
    residual = torch.zeros(1, 192)
    residual[0, 0], residual[0, 1], residual[0, 8], residual[0, -1] = 10.0, -0.25, 0.075, 30.0
    out = block.mlp(block.norm2(residual))[0].detach()
    channels = dict(zip(("band 0, t0", "band 0, t1", "band 1, t0"), out[[112, 113, 116]].tolist(), strict=True))
    idle = float(out[114])  # no component of its own is active
    assert channels["band 0, t0"] == pytest.approx(1, abs=0.05)
    assert channels["band 0, t1"] == pytest.approx(0.44, abs=0.08)
    assert channels["band 1, t0"] == pytest.approx(0.44, abs=0.08)
    assert idle == pytest.approx(2 * 0.036, abs=0.005)  # two silent components, each -2 f(-1) = 0.036


def _builder():
    protocol = nano_protocol()
    corpus = ["The photo shows strong motion blur", "user assistant " + protocol.round1.text, "0.12, 3.45"]
    return RowBuilder(build_tokenizer(corpus), protocol, TeachConfig())


def _entry(box):
    step = Step(kind="motion_blur", severity=0.8, params={"length_px": 9.0})
    return Entry(features=torch.randn(6, 256).half(), grid=(2, 3), label=2.5, record=Record(steps=(step,), box=box))


def test_rows_carry_only_the_assistants_tokens_as_targets():
    builder, rng = _builder(), np.random.default_rng(0)
    row = builder.first(_entry((0.5, 0.5, 1.0, 1.0)), rng)
    targets = sorted([*row.hard, *row.soft])
    assert targets == list(range(row.prompt_length, len(row.ids)))
    assert row.ids.count(builder.tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 6
    assert sum(is_box for _, _, is_box in row.soft.values()) >= 8
    direct = builder.direct(_entry(None), rng)
    assert [direct.ids[k] for k in direct.hard] == [builder.character_ids["."]]
    assert len(direct.soft) == 3
    assert all(sum(p) == pytest.approx(1) for _, p, _ in direct.soft.values())


def test_row_loss_ignores_padding_and_company():
    """A row's loss is the same alone and beside a longer row (mean over tokens, so compare one-row losses)."""
    builder, rng = _builder(), np.random.default_rng(0)
    torch.manual_seed(0)
    model = build_model(builder.tokenizer, seed=0).eval()
    readouts = Readouts(256)
    short, long = builder.direct(_entry(None), rng), builder.first(_entry((0.1, 0.1, 0.5, 0.5)), rng)
    alone = rows_loss(model, readouts, [short], builder.config)[1]["rating"]
    double = rows_loss(model, readouts, [short, long], builder.config)[1]["rating"]
    other = rows_loss(model, readouts, [long], builder.config)[1]["rating"]
    assert double == pytest.approx((alone + other) / 2, abs=0.02)  # both rows have three rating digits; bfloat16


def test_token_truth_places_and_covers():
    truth = token_truth(_entry((0.0, 0.0, 0.5, 1.0)))
    assert torch.allclose(truth[:, 0].reshape(2, 3)[0], torch.tensor([1 / 6, 0.5, 5 / 6]))
    assert truth[:, 2].reshape(2, 3).tolist() == [[1, 0, 0], [1, 0, 0]]
