"""`--config`: defaults of any command from a file; the command line wins, and a wrong key is named."""

import json

import pytest
import typer
from test_cli import grays, run, scripted  # noqa: F401  (fixtures)

from zoomiqa_reward.cli.config_file import add_config, defaults_of, read_config
from zoomiqa_reward.cli.main import commands
from zoomiqa_reward.errors import ConfigFileError

SAME = {
    "a.toml": 'json = true\nmode = "reason"\nbatched = true\n',
    "a.yaml": "json: true\nmode: reason\nbatched: true\n",
    "a.yml": "# in words\njson: true\nmode: reason\nstrict: false\n",
}


def command(name):
    app = typer.Typer(add_completion=False)
    app.command(name)(commands()[name].load())
    result = typer.main.get_command(app)
    add_config(result)
    return result


@pytest.mark.parametrize("file", SAME)
def test_both_formats_give_defaults_and_the_command_line_wins(file, capsys, grays, scripted):  # noqa: F811
    (grays / file).write_text(SAME[file])
    code, out, _ = run(capsys, "score", "mid.png", "--config", file)
    assert code == 0
    assert json.loads(out)["mode"] == "reason"
    _, out, _ = run(capsys, "score", "mid.png", "--config", file, "--mode", "direct")
    assert json.loads(out)["mode"] == "direct"
    assert defaults_of(command("score"), read_config(grays / file), file)["strict"] is False


def test_a_required_option_may_come_from_the_file(capsys, grays, scripted):  # noqa: F811
    (grays / "t.toml").write_text('out = "run"\nreward = "none"\n')
    assert "--out" in run(capsys, "evaluate", "nosuch")[2]
    assert "nosuch" in run(capsys, "evaluate", "nosuch", "--config", "t.toml")[2].replace("'t.toml'", "")


def test_numbers_are_read_as_on_the_command_line(capsys, grays, scripted):  # noqa: F811
    (grays / "n.yaml").write_text("n: 2.5\n")
    code, _, err = run(capsys, "best-of-n", "mid.png", "--config", "n.yaml")
    assert code == 1
    assert "--n" in err
    assert "integer" in err
    values = defaults_of(command("best-of-n"), {"n": 3, "restorer": ["a", "b"], "prompt": "x"}, "f")
    assert values == {"n": "3", "restorer": ["a", "b"], "prompt": ["x"]}


@pytest.mark.parametrize(("name", "text", "words"), [
    ("a.toml", "modl = 1\n", ["'modl'", "model", "mode", "question"]),
    ("a.yaml", "images: [x]\n", ["'images'", "model"]),  # an argument is no option
    ("a.yaml", "config: b.yaml\n", ["'config'"]),
    ("a.yaml", "json: yes please\n", ["json", "true or false"]),
    ("a.yaml", "json: 1\n", ["json", "true or false"]),
    ("a.yaml", "model: [a, b]\n", ["model", "a text or a number"]),
    ("a.yaml", "model:\n", ["model", "None"]),
    ("a.yaml", "strict: true\nbatched: true\n", ["'batched'", "twice"]),
    ("a.yaml", "- json\n", ["list"]),
    ("a.yaml", "a: [1,\n", ["YAML"]),
    ("a.toml", "a = [1,\n", ["TOML"]),
    ("a.toml", "mode = \"x\"\n", ["--mode", "reason"]),
    ("a.json", "{}", [".toml"]),
])  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(name, text, words, capsys, grays, scripted):  # noqa: F811
    (grays / name).write_text(text)
    code, out, err = run(capsys, "score", "mid.png", "--config", name)
    assert (code, out) == (1, "")
    assert all(word in err for word in words), err
    if "--mode" not in words:
        assert name in err
        with pytest.raises(ConfigFileError):
            defaults_of(command("score"), read_config(grays / name), name)


def test_an_empty_file_changes_nothing(capsys, grays, scripted):  # noqa: F811
    (grays / "a.yaml").write_text("# later\n")
    assert run(capsys, "score", "mid.png", "--config", "a.yaml") == run(capsys, "score", "mid.png")


def test_a_missing_file_is_named(capsys, grays, scripted):  # noqa: F811
    assert "no.toml: no such file" in run(capsys, "score", "mid.png", "--config", "no.toml")[2]
