"""What a training looks at before it starts: its part of the data, enough images, all readable, its own run."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_evaluate import config as evaluate_config
from test_rl_trainer import config, dataset  # noqa: F401 - a fixture
from test_sft import config as sft_config
from tiny import make_image, tiny_checkpoint, tiny_iqa, tiny_protocol

from train_iqa import evaluate as evaluation
from train_iqa import grpo, sft
from train_iqa.curation.config import CurateConfig
from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.loop import _select_images
from train_iqa.data import DatasetProblems, DatasetSource, load_dataset, select
from train_iqa.rl.rewards import RewardConfig
from train_iqa.training.learner import ModelConfig
from train_iqa.training.run_state import read_log
from zoomiqa_reward.images import save_png
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.settings import AnotherRun


class Started(Exception):
    """The run would begin now."""


@pytest.fixture
def parts(monkeypatch):
    """The images that runs of RL would draw from, one entry per run."""
    seen = []

    def stop(config, parts, accelerator):
        seen.append(parts)
        raise Started

    monkeypatch.setattr(grpo, "Trainer", stop)
    return seen


def table(folder: Path, count: int) -> Path:
    lines = ["image,mos", *(f"{k}.png,{1 + 4 * k / count}" for k in range(count))]
    for k in range(count):
        save_png(make_image(k, 12, 16), folder / f"{k}.png")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return folder / "all.csv"


def test_a_test_part_is_the_same_for_every_seed_of_every_command(tmp_path, parts, monkeypatch):
    """Else SFT, or RL with another seed, would have learned from what is tested."""
    source = DatasetSource(family="csv", root=table(tmp_path, 30))
    divided = load_dataset("csv", source.root)
    training, tested = (select(divided, name) for name in ("training", "test"))
    assert select(divided, "test", seed=1) != tested
    measured = []

    def stop(config, iqa, chosen, state):
        measured.append(chosen["all"])
        raise Started

    monkeypatch.setattr(evaluation, "_measure", stop)
    for seed in (0, 1):
        with pytest.raises(Started):
            grpo.train(config(tmp_path / f"rl{seed}", data=(source,), seed=seed))
        options = {"sources": (source,), "part": "test", "seed": seed, "checks": "paths"}
        with pytest.raises(Started):
            evaluation.evaluate(evaluate_config(tmp_path, tmp_path / f"evaluated{seed}", **options), tiny_iqa())
        teacher = Endpoint(model="any")
        curated = CurateConfig(sources=(source,), teacher=teacher, out=tmp_path, part="training", seed=seed)
        assert _select_images(divided, curated) == training
    drawn = [[[image.id for image in images] for images in run] for run in parts]
    assert drawn == [[[image.id for image in training]]] * 2
    assert [[image.id for image in images] for images in measured] == [[image.id for image in tested]] * 2


def test_rl_draws_from_the_asked_part_alone(dataset, tmp_path, parts):  # noqa: F811
    images = [replace(image, split="test" if k % 4 == 0 else "training") for k, image in enumerate(dataset.images)]
    divided = replace(dataset, images=tuple(images))
    for name in ("training", "test"):
        with pytest.raises(Started):
            grpo.train(config(tmp_path / name, part=name), [divided])
    assert [[len(images) for images in run] for run in parts] == [[6], [2]]
    assert {image.split for image in parts[0][0]} == {"training"}


def test_a_data_set_with_too_few_images_is_refused_before_its_turn_comes(dataset, tmp_path, parts):  # noqa: F811
    small = replace(dataset, name="small", images=tuple(replace(i, dataset="small") for i in dataset.images[:7]))
    made = config(tmp_path / "run", images_per_step=8, rewards=RewardConfig())
    with pytest.raises(ValueError, match="small: part 'training' holds 7 images, and a step draws images_per_step=8"):
        grpo.train(made, [dataset, small])
    assert not (tmp_path / "run").exists()
    with pytest.raises(Started):
        grpo.train(made, [dataset])


@pytest.mark.integration
def test_another_division_of_the_same_images_is_another_run(tmp_path, parts):
    """The references decide which images are learned from; labels and files are the same."""
    file = table(tmp_path, 30)
    names = file.read_text().split()
    changed = config(tmp_path / "rl", data=(DatasetSource(family="csv", root=file),))
    for references in (range(30), [k // 3 for k in range(30)]):
        lines = [f"{names[0]},reference", *(f"{line},r{k}" for line, k in zip(names[1:], references, strict=True))]
        file.write_text("\n".join(lines) + "\n")
        with pytest.raises(Started if not parts else AnotherRun):
            grpo.train(changed)
    assert len(parts) == 1


def test_images_that_cannot_be_decoded_are_listed_before_a_run_starts(tmp_path, parts):
    """A run that met one in step 3000 could never go on: the file's repair would make it another run."""
    source = DatasetSource(family="csv", root=table(tmp_path, 8))
    for name in ("3.png", "5.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    made = config(tmp_path / "run", data=(source,), part="all")
    with pytest.raises(DatasetProblems, match=r"2 problems \(2 corrupt\)") as caught:
        grpo.train(made)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["3.png", "5.png"]
    assert not (tmp_path / "run").exists()
    stage = sft_config(tmp_path, "sft")
    torn = next((tmp_path / "d" / "images").glob("*.png"))
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(DatasetProblems, match=torn.name):
        sft.train(stage)
    assert not (tmp_path / "sft").exists()


@pytest.mark.integration
def test_a_protocol_file_that_changed_is_another_run(tmp_path):
    file = tiny_protocol().save(tmp_path / "protocol.json")
    model = ModelConfig(name=str(tiny_checkpoint()), device="cpu", protocol=str(file))
    stage = sft_config(tmp_path, model=model, steps=1)
    sft.train(stage)
    sft.train(stage)
    tiny_protocol(questions=("Is it sharp?",)).save(file, overwrite=True)
    with pytest.raises(AnotherRun, match=r"contents\.protocol was"):
        sft.train(stage)
    assert len(read_log(stage.out)) == 1


@pytest.mark.parametrize("name", ["sft", "grpo", "evaluate"])
def test_a_folder_in_which_another_run_works_is_refused(dataset, tmp_path, name):  # noqa: F811
    pytest.importorskip("fcntl")
    out, source = tmp_path / "run", DatasetSource(family="csv", root=table(tmp_path, 30))
    starts = {
        "sft": lambda: sft.train(sft_config(tmp_path, "run")),
        "grpo": lambda: grpo.train(config(out), [dataset]),
        "evaluate": lambda: evaluation.evaluate(evaluate_config(tmp_path, out, sources=(source,)), tiny_iqa()),
    }
    with locked(out), pytest.raises(ValueError, match="another process works in it"):
        starts[name]()
    assert not (out / "run.json").exists()
