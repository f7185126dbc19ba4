"""Best of N: the order, the folder, what a kill leaves, when it stops, and what it says about identical pictures."""

import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy import integrate, stats
from tiny import picture, tiny_checkpoint
from tiny_pipelines import controlnet, convolutions, ldm

from restoration import drawing
from restoration.draw_folder import open_run
from restoration.early_stop import EarlyStop, expected_improvement, t_distribution
from restoration.restorer import Restorer
from restoration.rng import candidate_seed
from restoration.selection import Cascade, best_of_n
from zoomiqa_reward.json_lines import read_lines
from zoomiqa_reward.reward import MetricReward

LQ = picture(0, 12, 16)


def shifted(image, seed):
    """Twice as large, brighter by an amount that the seed fixes."""
    rise = float(np.random.default_rng(seed).random()) * 0.2
    return (image * 0.8).repeat_interleave(2, 1).repeat_interleave(2, 2) + rise


def mean_of(image):
    return image.mean()


def brightness(**options):
    return MetricReward(mean_of, **({"name": "brightness", "higher_is_better": True, "score_range": (0, 1)} | options))


def run(restorer=shifted, reward=None, **options):
    return best_of_n(restorer, LQ, reward or brightness(), progress=False, **({"n": 6} | options))


def summary(result):
    """What a run is about, without its clock."""
    return [
        (one.index, one.seed, one.restorer, one.source, one.score, one.cascade_score, one.valid, one.rank, one.error,
         one.pixels, one.same_as, one.prompt)
        for one in result.candidates
    ]  # fmt: skip


def same(left, right):
    return repr(summary(left)) == repr(summary(right))  # repr: NaN equals NaN


def test_the_best_is_the_best_and_scores_are_those_of_the_8_bit_pictures():
    result = run(keep=6)
    scores = [one.score for one in result.candidates]
    for one in result.candidates:
        assert one.score == pytest.approx(np.asarray(one.image).mean() / 255, abs=1e-6)
        assert one.image.size == (32, 24)
        assert one.seed == candidate_seed(0, one.index)
    assert result.best.score == max(scores)
    assert [one.rank for one in result.order] == [1, 2, 3, 4, 5, 6]
    assert [one.score for one in result.order] == sorted(scores, reverse=True)
    assert not result.identical
    assert result.notes == ()


def test_candidate_k_does_not_depend_on_n_batch_or_neighbours():
    pipeline = Restorer.from_pretrained(ldm(), steps=1, eta=1.0)
    options = {"progress": False, "keep": 4}
    reference = best_of_n(pipeline, LQ, brightness(), n=4, **options)
    one = best_of_n(pipeline, LQ, brightness(), n=1, **options)
    batched = best_of_n(pipeline, LQ, brightness(), n=4, batch_size=3, **options)
    assert one.candidates[0].pixels == reference.candidates[0].pixels
    assert same(reference, batched)
    assert len({c.pixels for c in reference.candidates}) > 1


def test_outside_strict_mode_batches_are_recorded():
    pipeline = Restorer.from_pretrained(controlnet(), scale=1, steps=1, strength=1.0)
    result = best_of_n(pipeline, LQ, brightness(), n=4, batch_size=3, strict=False, progress=False)
    assert [(c.batch_position, c.batch_size) for c in result.candidates] == [(0, 3), (1, 3), (2, 3), (0, 1)]
    assert result.best.prompt == ""


def test_only_the_best_pictures_are_held():
    result = run(n=8, keep=2)
    held = [one for one in result.candidates if one.held is not None]
    assert sorted(one.rank for one in held) == [1, 2]
    with pytest.raises(ValueError, match="was not kept"):
        _ = result.order[2].image


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
@pytest.mark.parametrize("where", ["restoring", "scoring", "between picture and line"])
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
            from restoration import draw_folder

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
    for options in ({"seed": 1}, {"reward": brightness(name="other")}, {"prompts": "a"}, {"hr": picture(1)},
                    {"restorer": convolutions()}, {"batch_size": 2, "strict": False}):  # fmt: skip
        with pytest.raises(ValueError, match="holds another run") as refused:
            run(out=tmp_path, **options)
        assert "use another folder" in str(refused.value)
    with pytest.raises(ValueError, match=r"another run \(image was"):
        best_of_n(shifted, picture(5, 12, 16), brightness(), out=tmp_path, progress=False)
    longer = run(out=tmp_path, n=6)
    assert [one.pixels for one in longer.candidates[:4]] == [one.pixels for one in first.candidates]
    assert same(longer, run(n=6))


def test_two_processes_cannot_share_a_folder(tmp_path):
    pytest.importorskip("fcntl")
    with open_run(tmp_path, {"a": 1}), pytest.raises(ValueError, match="another process"), open_run(tmp_path, {"a": 1}):
        pass


def test_failures_come_last_and_are_named(tmp_path):
    bad = {candidate_seed(0, 1), candidate_seed(0, 4)}

    def moody(image, seed):
        if seed in bad:
            raise RuntimeError("out of memory")
        return shifted(image, seed)

    def unsure(image):
        value = float(image.mean())
        return math.nan if value == max(seen) else value

    seen = [one.score for one in run(keep=6).candidates if one.seed not in bad]
    reward = MetricReward(unsure, "unsure", True, (0, 1))
    result = run(moody, reward, out=tmp_path)
    assert [one.rank for one in result.order] == [1, 2, 3, None, None, None]
    assert [one.index for one in result.order[3:]] == sorted(one.index for one in result.order[3:])
    assert all(math.isnan(one.score) and not one.valid for one in result.order[3:])
    assert {one.error for one in result.candidates if one.seed in bad} == {"moody: out of memory"}
    with pytest.raises(ValueError, match="has no picture: moody"):
        _ = result.candidates[1].image
    assert len(result.notes) == 2
    assert result.notes[0].startswith("2 of 6 could not be made")
    assert result.notes[1].startswith("1 of 6 could not be measured; the first: unsure returned nan")
    assert same(run(moody, reward, out=tmp_path), result)
    nothing = run(moody, MetricReward(lambda image: math.nan, "nothing", True, (0, 1)))
    with pytest.raises(ValueError, match="none of 6 candidates"):
        _ = nothing.best


def test_a_deterministic_restorer_runs_once_and_says_that_nothing_was_chosen(tmp_path):
    calls = []

    def fixed(image):
        calls.append(1)
        return image

    with pytest.warns(UserWarning, match="all 6 candidates are the same picture"):
        result = run(fixed, out=tmp_path)
    assert calls == [1]
    assert result.identical
    assert [one.rank for one in result.candidates] == [1] * 6
    assert [one.same_as for one in result.candidates] == [None, 0, 0, 0, 0, 0]
    assert len(list((tmp_path / "candidates").iterdir())) == 1
    assert json.loads((tmp_path / "run.json").read_text())["identical"]
    with pytest.warns(UserWarning, match="same picture"):
        again = run(fixed, out=tmp_path)
    assert same(again, result)
    assert calls == [1]
    with pytest.warns(UserWarning, match="does not use its seed"):
        assert run(lambda image, seed: image).identical
    assert not run(fixed, n=1).identical


def test_a_mixed_pool_goes_round_restorers_then_prompts():
    def worded(image, seed, prompt):
        return shifted(image, seed) * (0.5 if prompt == "dark" else 1.0)

    pool = [Restorer.from_pretrained(worded), Restorer.from_pretrained(convolutions(scale=2))]
    with pytest.warns(UserWarning, match="Sequential takes no prompt"):
        result = run(pool, prompts=["dark", "light"], n=8, keep=8)
    assert [one.restorer for one in result.candidates] == ["worded", "Sequential"] * 4
    assert [one.prompt for one in result.candidates] == ["dark", None, "light", None] * 2
    assert [one.source for one in result.candidates] == [0, 1, 2, 3] * 2
    assert [one.same_as for one in result.candidates] == [None] * 5 + [1, None, 3]
    assert not result.identical
    shorter = run(pool, prompts=["dark", "light"], n=3)
    assert [one.pixels for one in shorter.candidates] == [one.pixels for one in result.candidates[:3]]


def test_rewards_get_what_they_need():
    seen = []

    def fn(image, lq, hr, prompt):
        seen.append((tuple(image.shape), torch.equal(lq, LQ), tuple(hr.shape), prompt))
        return float(-(image - hr).square().mean())

    reward = MetricReward(fn, "mse", True, (-1, 0), needs=("lq", "hr", "prompts"))
    hr = LQ.repeat_interleave(2, 1).repeat_interleave(2, 2)
    run(reward=reward, hr=hr, n=2)
    assert seen == [((3, 24, 32), True, (3, 24, 32), "")] * 2
    with pytest.raises(ValueError, match="reward 'mse' needs hr="):
        run(reward=reward)


def test_cascade_asks_about_the_few_best_and_they_come_first(tmp_path):
    asked = []

    def contrary(image):
        asked.append(float(image.mean()))
        return -float(image.mean())

    second = MetricReward(contrary, "contrary", True, (-1, 0))
    cascade = Cascade(reward=second, top=3)
    plain = run(n=6)
    result = run(n=6, cascade=cascade, out=tmp_path)
    best = [one.index for one in plain.order]
    assert [one.index for one in result.order] == [*best[2::-1], *best[3:]]
    assert len(asked) == 3
    assert [one.cascade_score for one in result.order[:3]] == pytest.approx(sorted((-a for a in asked), reverse=True))
    assert all(math.isnan(one.cascade_score) for one in result.order[3:])
    assert same(run(n=6, cascade=cascade, out=tmp_path), result)
    assert len(asked) == 3
    assert same(run(n=6, out=tmp_path), plain)
    assert same(run(n=6, keep=1, cascade=cascade), result)  # without a folder the pictures are held for it


def test_a_cascade_that_cannot_tell_leaves_the_first_order():
    blind = MetricReward(lambda image: math.nan, "blind", True, (0, 1))
    result = run(cascade=Cascade(reward=blind, top=2))
    assert [one.index for one in result.order] == [one.index for one in run().order]
    assert "blind returned nan" in result.best.cascade_error


def test_numbers_out_of_range_are_refused():
    for options in ({"n": 0}, {"keep": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="at least 1, 1, 1 and 0"):
            run(**options)
    with pytest.raises(ValueError, match="0 restorers"):
        run([])
    with pytest.raises(ValueError, match="top=0"):
        Cascade(reward=brightness(), top=0)
    with pytest.raises(ValueError, match="min_draws=2"):
        EarlyStop(min_draws=2)
    with pytest.raises(ValueError, match="min_gain=0"):
        EarlyStop(min_gain=0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20])
def test_t_distribution_is_scipys(freedom):
    for z in (-4.0, -0.5, 0.0, 1.3, 9.0):
        assert t_distribution(z, freedom) == pytest.approx(stats.t.cdf(z, freedom), abs=1e-12)


@pytest.mark.parametrize("scores", [[2.0, 3.0, 4.0], [1.0, 1.2, 0.7, 3.9, 2.0], [0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.1]])
def test_expected_improvement_is_its_integral(scores):
    for best in (max(scores), max(scores) + 0.3, sum(scores) / len(scores)):
        scale = np.std(scores, ddof=1) * math.sqrt(1 + 1 / len(scores))
        centre, freedom = np.mean(scores), len(scores) - 1
        value, _ = integrate.quad(
            lambda x, b=best, c=centre, s=scale, v=freedom: (x - b) * stats.t.pdf((x - c) / s, v) / s, best, np.inf
        )
        assert expected_improvement(scores, best) == pytest.approx(value, rel=1e-6)


def test_early_stopping_follows_its_rule_and_resumes_alike(tmp_path):
    rule = EarlyStop(min_gain=0.004, min_draws=4)
    full = [one.score for one in run(n=40).candidates]
    first = next(m for m in range(4, 41) if expected_improvement(full[:m], max(full[:m])) < 0.004)
    assert 4 < first < 40
    result = run(n=40, early_stop=rule, out=tmp_path)
    assert len(result.candidates) == first
    assert result.stopped_early
    assert f"stopped after {first} of 40" in result.notes[0]
    assert same(run(n=40, early_stop=rule, out=tmp_path), result)
    assert not run(n=first, early_stop=rule).stopped_early


def test_early_stopping_looks_at_each_source():
    rule = EarlyStop(min_gain=0.01)
    tight, wide = [1.0, 1.001, 0.999, 1.0], [0.0, 0.9, 0.1, 0.5]
    assert rule.says_stop([tight])
    assert not rule.says_stop([tight, wide])
    assert not rule.says_stop([tight, tight[:3]])
    assert rule.says_stop([tight, [0.2, 0.2, 0.2, 0.2]])
    assert not rule.says_stop([])


def test_command_writes_the_folder_and_json_lines(tmp_path, capsys):
    from restoration.commands.best_of_n import best_of_n as command

    ldm().save_pretrained(tmp_path / "toy")
    Image.fromarray((LQ.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / "lq.png")
    options = {"restorer": [str(tmp_path / "toy")], "steps": 1, "n": 3, "out": tmp_path / "out", "device": "cpu",
               "model": str(tiny_checkpoint()), "as_json": True, "cascade": 0}  # fmt: skip
    assert command(str(tmp_path / "lq.png"), **options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3]
    assert all(line["valid"] and 1 <= line["score"] <= 5 for line in lines)
    assert (tmp_path / "out" / "sheet.png").exists()
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
