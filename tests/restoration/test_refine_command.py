"""Refinement's command, and the strip of images that it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scripted_refinement import ASKS, CONTENT, LQ, Scripted, run
from tiny_pipelines import small_nano

from restoration.cli.refine import refine as command
from restoration.refinement import strip
from restoration.refinement.strip import CELL_PX, MARGIN_PX, strip_of
from zoomiqa_reward.cli import inputs
from zoomiqa_reward.model.ratings import Ratings


def test_the_strip_shows_every_image_with_its_detail_before_and_after():
    result = run(iqa=Scripted(ASKS, CONTENT), rounds=3)
    drawn = np.asarray(strip_of(result)).astype(int)
    assert drawn.shape[1] == 3 * CELL_PX + 4 * MARGIN_PX  # low quality, start, round 1
    left, top, right, bottom = (2 * side for side in result.history[1].region)
    for column, one in ((1, result.history[0]), (2, result.history[1])):
        detail = np.asarray(one.image.crop((left, top, right, bottom)))
        detail = detail.repeat(2, 0).repeat(2, 1)
        x = MARGIN_PX + column * (CELL_PX + MARGIN_PX)
        assert shows(drawn[:, x : x + CELL_PX], detail)
    before = np.asarray(result.history[0].image.crop((left, top, right, bottom))).repeat(2, 0).repeat(2, 1)
    assert shows(drawn[:, x : x + CELL_PX], before)
    assert not shows(drawn[:, : MARGIN_PX + CELL_PX], before)


def test_the_strip_names_both_details_and_says_in_words_why_the_run_stopped(monkeypatch):
    drawn = []
    plain = strip.draw_text
    monkeypatch.setattr(
        strip, "draw_text", lambda draw, at, text, *more: drawn.append(text) or plain(draw, at, text, *more)
    )
    result = run(iqa=Scripted(ASKS, CONTENT), rounds=1)
    assert result.stopped == "budget"
    strip_of(result)
    assert [text for text in drawn if text in ("before", "after")] == ["before", "after"]
    assert any(text.startswith("Stopped: all rounds are used. LR-consistency: how well") for text in drawn)
    drawn.clear()
    strip_of(replace(result, history=result.history[:1]))  # two columns: too narrow for the sentence in one line
    assert " ".join(drawn).endswith(f"Stopped: all rounds are used. {strip.MEANING}")
    for stopped, words in (
        ("satisfied", "the model asks for no closer look"), ("unreadable", "the model's answer cannot be read (why)"),
        ("deterministic", "the restorer takes no seed"),
    ):  # fmt: skip
        reason = words if stopped == "satisfied" else "why"
        last = replace(result.history[-1], stop=stopped, reason=reason)
        assert words in replace(result, history=(result.history[0], last), stopped=stopped).ending


def shows(strip, detail):
    """Whether the detail stands somewhere in the strip, pixel by pixel."""
    height, width = detail.shape[:2]
    hits = (strip[: strip.shape[0] - height + 1, : strip.shape[1] - width + 1] == detail[0, 0]).all(axis=2)
    return any((strip[y : y + height, x : x + width] == detail).all() for y, x in np.argwhere(hits))


@pytest.mark.integration
def test_the_command_prints_a_line_a_round_and_tells_what_was_not_measured(tmp_path, monkeypatch, capsys):
    small_nano().save_pretrained(tmp_path / "pipeline")
    Image.fromarray((LQ * 255).byte().permute(1, 2, 0).numpy()).crop((0, 0, 48, 40)).save(tmp_path / "lq.png")

    class Rating(Scripted):
        def rate(self, images, **options):
            mean = torch.tensor([1 + 4 * float(image.mean()) for image in images])
            return Ratings(value=mean, std=mean * 0, valid=mean > 0, std_kind="token")

    app = typer.Typer()
    app.command()(command)
    arguments = [str(tmp_path / "lq.png"), "--restorer", str(tmp_path / "pipeline"), "--device", "cpu", "--steps", "1",
                 "--seeds-per-round", "2", "--rounds", "2", "--slack-db", "30", "--min-gain", "0"]  # fmt: skip
    for answers, code, stopped, words in (
        ((ASKS, CONTENT), 0, "satisfied", "the model asks for no closer look"),
        ((("garbage",),), 2, "unreadable", "the model's answer cannot be read ("),
    ):
        monkeypatch.setattr(inputs, "load_model", lambda *_, _answers=answers, **__: Rating(*_answers))
        out = tmp_path / stopped
        for more in (["--json"], []):  # the second one reads what the first one made
            assert app([*arguments, "--out", str(out), *more], standalone_mode=False) == code
            printed = capsys.readouterr()
            assert f"stopped: {words}" in printed.err
            if more:
                rows = [json.loads(line, parse_constant=pytest.fail) for line in printed.out.splitlines()]
                assert [row["number"] for row in rows] == list(range(len(rows)))
                assert rows[0]["image"] == str(out / "rounds" / "00.png")
                assert rows[-1]["stop"] == stopped
            else:
                assert "the whole image" in printed.out
                assert "nan" not in printed.out.lower()
        assert (out / "strip.png").exists()
