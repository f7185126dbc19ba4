"""The options of the curation command, and its configuration file."""

import pytest
from PIL import Image

pytest.importorskip("openai", reason="comes with the extra [train]")

from train_iqa import curate as command
from train_iqa.curation.prompts import Prompts
from train_iqa.curation.reliance import RelianceConfig


@pytest.fixture
def table(tmp_path):
    """A data set of one image."""
    Image.new("RGB", (32, 32), "grey").save(tmp_path / "image.png")
    file = tmp_path / "scores.csv"
    file.write_text("image,mos\nimage.png,3.0\n")
    return file


def test_options_are_frozen_and_checked(table, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    names = {name for action in command.build_parser()._actions for name in action.option_strings}
    assert names == {
        "-h", "--help", "--data", "--name", "--image-root", "--scale", "--part", "--limit", "--teacher",
        "--teacher-url", "--teacher-key-variable", "--teacher-temperature", "--teacher-max-tokens", "--teacher-prices",
        "--judge", "--judge-url", "--judge-key-variable", "--judge-temperature", "--judge-max-tokens",
        "--judge-prices", "--logprobs", "--protocol", "--attempts", "--rounds", "--rating-tolerance", "--no-reliance",
        "--no-consistency", "--thresholds", "--max-pixels", "--concurrency", "--checks", "--accept", "--seed", "--out",
    }  # fmt: skip
    base = ["--data", f"csv={table}", "--teacher", "m", "--out", str(tmp_path / "o")]
    config = command.config_of(
        command.build_parser().parse_args(
            [*base, "--teacher-prices", "1:2", "--judge", "j", "--no-reliance", "--logprobs", "5"]
        )
    )
    assert (config.teacher.price_in, config.teacher.price_out, config.teacher.top_logprobs) == (1.0, 2.0, 5)
    assert config.judge is not None
    assert config.judge.temperature == 0.0
    assert config.reliance is None
    assert command.main(base) == 1
    assert "set OPENAI_API_KEY" in capsys.readouterr().err
    for wrong, message in (
        (["--teacher-prices", "1"], "must be two numbers"), (["--teacher-temperature", "0"], "are all the same"),
        (["--judge-url", "u"], "--judge MODEL is missing"), (["--data", "nothing=x"], "must be FAMILY=PATH"),
    ):  # fmt: skip
        assert command.main([*base, *wrong]) == 1
        assert message in capsys.readouterr().err
    assert command.main([]) == 1
    assert "--data, --teacher, --out: needed" in capsys.readouterr().err


def test_a_configuration_file_holds_the_same_fields(table, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"sources: [{{family: csv, root: {table}}}]\nout: {tmp_path / 'out'}\nattempts: 2\n"
        "teacher: {model: a, base_url: 'http://localhost:1/v1', price_in: 1, price_out: 2}\nreliance: {box: 0.5}\n"
    )
    config = command.config_of(command.build_parser().parse_args([str(file), "--attempts", "4", "--teacher", "b"]))
    assert (config.attempts, config.teacher.model, config.teacher.price_out) == (4, "b", 2.0)
    assert config.reliance == RelianceConfig(box=0.5)
    with pytest.raises(ValueError, match="prompt round1: may only hold"):
        Prompts(round1="{image}")
