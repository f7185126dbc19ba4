"""Best of N's folder: what it holds, what a kill leaves, what is refused, and the command that writes it."""

import json
from importlib.metadata import version

import numpy as np
import pytest
import typer
from brightness_runs import LQ, brightness, run, same, shifted
from PIL import Image
from tiny import make_image, tiny_checkpoint
from tiny_pipelines import convolutions, ldm

from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection import candidate_loop as drawing
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.result import open_run
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.rewards.consensus import distances_from_mean
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.runs.json_lines import read_lines


def test_the_folder_holds_everything(tmp_path):
    result = run(out=tmp_path / "run", keep=1)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["finished"]
    assert report["versions"]["torch"] == version("torch")
    assert [row["rank"] for row in report["ranking"]] == [1, 2, 3, 4, 5, 6]
    assert report["ranking"][0]["index"] == result.best.index
    lines = read_lines(tmp_path / "run" / "candidates.jsonl")
    assert [line["seed"] for line in lines] == [candidate_seed(0, k) for k in range(6)]
    assert {line["batch_position"] for line in lines} == {0}
    for one in result.candidates:
        with Image.open(one.file) as image:
            assert drawing.pixels_digest(image) == one.pixels
        assert drawing.pixels_digest(one.image) == one.pixels
    with Image.open(tmp_path / "run" / "best.png") as image:
        assert drawing.pixels_digest(image) == result.best.pixels
    with Image.open(tmp_path / "run" / "sheet.png") as image:
        assert image.mode == "RGB"
    assert not list(tmp_path.rglob("*.tmp"))


def test_save_writes_the_same_folder_that_out_does(tmp_path):
    run(keep=6).save(tmp_path / "saved")
    run(keep=6, out=tmp_path / "out")
    for name in ("best.png", "sheet.png", "candidates/0003.png"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert same(run(n=7, out=tmp_path / "saved"), run(n=7, out=tmp_path / "out"))


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("where", ["restoring", "scoring", "between image and line"])
def test_killed_and_resumed_is_the_same_run(tmp_path, monkeypatch, at, where):
    drawn, scored = [], []

    def counted(image, seed):
        drawn.append(seed)
        return shifted(image, seed)

    def measured(image):
        scored.append(1)
        return image.mean()

    restorer = Restorer.from_pretrained(counted, fingerprint="1")
    reward = MetricReward(measured, "m", True, (0, 1), fingerprint="1")
    expected = best_of_n(restorer, LQ, reward, n=6, progress=False)
    drawn.clear()

    def killed(fn, *args, **options):
        if len(drawn) == at + 1:
            raise Interrupted
        return fn(*args, **options)

    with monkeypatch.context() as patch:
        if where == "restoring":
            patch.setattr(restorer.engine, "fn", lambda image, seed: killed(counted, image, seed)
                          if len(drawn) != at else drawn.append(seed) or killed(None))  # fmt: skip
        elif where == "scoring":
            patch.setattr(reward, "fn", lambda image: killed(measured, image))
        else:
            from restoration.selection import result as draw_folder

            patch.setattr(draw_folder, "append_line", lambda *a, _true=draw_folder.append_line: killed(_true, *a))
        with pytest.raises(Interrupted):
            best_of_n(restorer, LQ, reward, n=6, out=tmp_path, progress=False)
    assert len(read_lines(tmp_path / "candidates.jsonl")) == at
    drawn.clear(), scored.clear()
    resumed = best_of_n(restorer, LQ, reward, n=6, out=tmp_path, progress=False)
    assert same(resumed, expected)
    assert drawn == [candidate_seed(0, k) for k in range(at, 6)]  # none lost, none twice
    assert len(scored) == 6 - at
    lines = read_lines(tmp_path / "candidates.jsonl")
    assert [line["index"] for line in lines] == list(range(6))
    drawn.clear()
    assert same(best_of_n(restorer, LQ, reward, n=6, out=tmp_path, progress=False), expected)
    assert drawn == []


@pytest.mark.parametrize("cut", [1, 20])
def test_a_half_written_last_line_is_made_again(tmp_path, cut):
    expected = run(out=tmp_path)
    file = tmp_path / "candidates.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    (tmp_path / "candidates" / "x.png.tmp").write_bytes(b"half")
    assert same(run(out=tmp_path), expected)
    assert [line["index"] for line in read_lines(file)] == list(range(6))
    assert not list(tmp_path.rglob("*.tmp"))


def test_damage_that_is_no_kill_is_refused(tmp_path):
    run(out=tmp_path)
    file = tmp_path / "candidates.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"index": 2', b'"index" 2'))
    with pytest.raises(ValueError, match="line 3: damaged"):
        run(out=tmp_path)
    file.write_bytes(whole)
    (tmp_path / "candidates" / "0004.png").unlink()
    with pytest.raises(ValueError, match=r"0004\.png is missing"):
        run(out=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"without run\.json"):
        run(out=tmp_path)


def test_another_run_in_the_same_folder_is_refused_and_another_n_is_not(tmp_path):
    first = run(out=tmp_path, n=4)
    for options in ({"seed": 1}, {"reward": brightness(name="other")}, {"prompts": "a"}, {"hr": make_image(1)},
                    {"restorer": convolutions()}, {"batch_size": 2, "strict": False}):  # fmt: skip
        with pytest.raises(ValueError, match="holds another run") as refused:
            run(out=tmp_path, **options)
        assert "or another folder" in str(refused.value)
    with pytest.raises(ValueError, match=r"another run \(image was"):
        best_of_n(shifted, make_image(5, 12, 16), brightness(), out=tmp_path, progress=False)
    longer = run(out=tmp_path, n=6)
    assert [one.pixels for one in longer.candidates[:4]] == [one.pixels for one in first.candidates]
    assert same(longer, run(n=6))


def test_what_lies_in_the_folder_and_takes_no_part_is_told(tmp_path):
    cascade = Cascade(reward=brightness(name="again"), top=2)
    assert run(out=tmp_path / "run", cascade=cascade).notes == ()
    first, second = run(out=tmp_path / "run", n=2).notes
    assert first.startswith("the choice is among the first 2 candidates; 4 more lie in the folder")
    assert "earlier cascade" in second
    black = best_of_n(shifted, np.zeros((12, 16, 3), np.uint8), brightness(), n=2, progress=False)
    assert any(note.startswith("restorations that show nothing are scored too") for note in black.notes)


def test_two_processes_cannot_share_a_folder(tmp_path):
    pytest.importorskip("fcntl")
    with open_run(tmp_path, {"a": 1}), pytest.raises(ValueError, match="another process"), open_run(tmp_path, {"a": 1}):
        pass


@pytest.mark.integration
def test_command_writes_the_folder_and_json_lines(tmp_path, capsys):
    from restoration.cli.best_of_n import best_of_n as command

    ldm().save_pretrained(tmp_path / "toy")
    Image.fromarray((LQ.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / "lq.png")
    options = {"restorer": [str(tmp_path / "toy")], "steps": 1, "n": 3, "out": tmp_path / "out", "device": "cpu",
               "model": str(tiny_checkpoint()), "as_json": True, "cascade": 0}  # fmt: skip
    assert command(str(tmp_path / "lq.png"), **options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3]
    assert all(line["valid"] and 1 <= line["score"] <= 5 for line in lines)
    assert (tmp_path / "out" / "sheet.png").exists()
    agreed = options | {"out": tmp_path / "agreed", "consensus": 0.01}
    assert command(str(tmp_path / "lq.png"), **agreed) == 0
    lowered = {line["index"]: line["score"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    images = [load_image(tmp_path / "agreed" / "candidates" / f"{k:04d}.png") for k in range(3)]
    for line in lines:
        away = float(distances_from_mean(images)[line["index"]])
        assert away > 0
        assert lowered[line["index"]] == pytest.approx(line["score"] - 0.01 * away, abs=1e-5)
    app = typer.Typer()
    app.command()(command)
    arguments = [
        str(tmp_path / "lq.png"), "--restorer", str(tmp_path / "toy"), "--steps", "1", "--n", "3", "--device", "cpu",
        "--out", str(tmp_path / "out"), "--model", str(tiny_checkpoint()), "--cascade", "2",
    ]  # fmt: skip
    assert app(arguments, standalone_mode=False) == 0  # resumed, and with a second reward
    said = capsys.readouterr()
    assert "candidates/0002.png" in said.out.replace("\\", "/")
    assert f"best: {tmp_path / 'out' / 'best.png'}" in said.err


def test_numbers_of_numpy_name_the_same_run(tmp_path):
    options = {"n": 2, "seed": 1, "keep": 1, "batch_size": 1, "out": tmp_path}
    first = run(**{key: np.int64(value) if key != "out" else value for key, value in options.items()})
    assert same(run(**options), first)
