"""Refinement's folder: what it holds, what a kill leaves, and what is refused."""

import json

import pytest
from PIL import Image
from scripted_refinement import ASKS, CONTENT, Scripted, answer, grainy, near_target, nearness, run, same, summary
from tiny_pipelines import convolutions

from restoration.refinement import result as journal
from restoration.restorer.restorer import Restorer
from restoration.selection.candidate_loop import pixels_digest
from restoration.selection.result import open_run
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.runs.json_lines import read_lines


@pytest.mark.integration
def test_the_folder_holds_everything_and_save_writes_the_same(tmp_path):
    answers = ASKS, answer([0.5, 0.5, 1, 1]), CONTENT
    result = run(out=tmp_path / "run", iqa=Scripted(*answers), rounds=3)
    saved = run(iqa=Scripted(*answers), rounds=3).save(tmp_path / "saved")
    names = ["refined.png", "strip.png", "rounds/00.png", "rounds/01.png", "rounds/02.png", "rounds.jsonl",
             "start/best.png"]  # fmt: skip
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (saved / name).read_bytes(), name
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["finished"]
    assert (report["stopped"], report["kept"]) == ("satisfied", 2)
    assert report["rounds"] == read_lines(tmp_path / "run" / "rounds.jsonl")
    assert report["rounds"][3]["reward"] is None
    with Image.open(tmp_path / "run" / "refined.png") as image:
        assert pixels_digest(image) == result.kept.pixels
    assert result.save(tmp_path / "run") == tmp_path / "run"
    assert len(read_lines(tmp_path / "run" / "rounds.jsonl")) == 4
    assert not list(tmp_path.rglob("*.tmp"))


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.integration
@pytest.mark.parametrize("at", [3, 4, 11])
def test_killed_and_resumed_is_the_same_run(tmp_path, at):
    drawn = []

    def counted(image, seed, prompt):
        if len(drawn) == at and not is_resumed:
            raise Interrupted
        drawn.append(seed)
        return grainy(image, seed)

    is_resumed = True
    answers = [answer([0, 0, 0, 0]), ASKS, ASKS, answer([0.5, 0.5, 1, 1])]
    restorer = Restorer.from_pretrained(counted, fingerprint="1")
    expected = run(restorer, iqa=Scripted(*answers), rounds=3)
    every, is_resumed = list(drawn), False
    drawn.clear()
    with pytest.raises(Interrupted):
        run(restorer, iqa=Scripted(*answers), rounds=3, out=tmp_path)
    is_resumed = True
    (tmp_path / "rounds" / "x.png.tmp").write_bytes(b"half")
    done = len(read_lines(tmp_path / "rounds.jsonl"))
    assert done == (0 if at < 4 else at // 4)
    drawn.clear()
    resumed = run(restorer, iqa=Scripted(*answers[done and done :]), rounds=3, out=tmp_path)
    assert same(resumed, expected)
    assert drawn == every[at - at % 4 if done else at :]  # the round in work again, none before it
    assert not list(tmp_path.rglob("*.tmp"))
    drawn.clear()
    assert same(run(restorer, iqa=Scripted(("nobody asks",)), rounds=3, out=tmp_path), expected)
    assert drawn == []
    assert json.loads((tmp_path / "run.json").read_text())["finished"]


@pytest.mark.integration
def test_a_kill_between_image_and_line_loses_one_round(tmp_path, monkeypatch):
    expected = run(rounds=2)
    true, lines = journal.append_line, []

    def killed(file, row):
        if len(lines) == 2:
            raise Interrupted
        lines.append(row)
        true(file, row)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append_line", killed)
        with pytest.raises(Interrupted):
            run(rounds=2, out=tmp_path)
    assert (tmp_path / "rounds" / "02.png").exists()
    assert same(run(rounds=2, out=tmp_path), expected)


@pytest.mark.integration
def test_more_rounds_go_on_and_another_run_is_refused(tmp_path):
    first = run(rounds=1, out=tmp_path)
    for options in ({"seed": 1}, {"seeds_per_round": 3}, {"min_gain": 0.1}, {"lr_consistency_slack_db": 0.0},
                    {"reward": nearness(name="other")}, {"restorer": convolutions(scale=2)}):  # fmt: skip
        with pytest.raises(ValueError, match="holds another run"):
            run(out=tmp_path, **options)
    longer = run(rounds=3, out=tmp_path)
    assert repr(summary(longer)[:2]) == repr(summary(first))
    assert same(longer, run(rounds=3))
    assert same(run(rounds=1, out=tmp_path), first)  # and fewer: what is there stays
    assert len(read_lines(tmp_path / "rounds.jsonl")) == 4
    (tmp_path / "rounds" / "02.png").unlink()
    with pytest.raises(ValueError, match=r"02\.png is missing"):
        run(rounds=3, out=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"without run\.json"):
        run(rounds=3, out=tmp_path)


def test_two_processes_cannot_share_a_folder(tmp_path):
    pytest.importorskip("fcntl")

    def intruder(image):
        if (tmp_path / "rounds.jsonl").exists() and not refused:
            for folder in (tmp_path, tmp_path / "start"):
                with pytest.raises(ValueError, match="another process"), open_run(folder, {}):
                    pass
            refused.append(1)
        return near_target(image)

    refused = []
    run(reward=MetricReward(intruder, "near", True, (0, 1)), rounds=1, out=tmp_path)
    assert refused
