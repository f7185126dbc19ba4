"""`--dtype` reaches the model from every command that loads one."""

import signal
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
from PIL import Image

from restoration.web import server
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.cli.main import commands, main
from zoomiqa_reward.serving import spec

COMMANDS = {
    "score": "a.png", "assess": "a.png", "rank": "a.png a.png", "map": "a.png", "check": "", "compare": "A B",
    "best-of-n": "a.png --out out", "search": "a.png --out out", "refine": "a.png --out out",
    "evaluate": "A --scale 2 --reward zoomiqa --out out", "web": "", "serve": "--port 0",
}  # fmt: skip
TRAINS = {"tune"}
"""Its reward stays in the type of the model, because a gradient may flow through it."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_type_reaches_the_model(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = Image.effect_noise((96, 96), 60).convert("RGB")
    for file in ("a.png", "A/a.png", "B/a.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        image.save(tmp_path / file)
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))  # only `zoomiqa web` has it
    monkeypatch.setattr(server, "serve_page", lambda *_, **__: nullcontext("no page"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    seen = []

    def load(*_, **given):
        seen.append(given["dtype"])
        raise ValueError("loaded")

    monkeypatch.setattr(ZoomIQA, "from_pretrained", load)
    monkeypatch.setattr(spec.RewardSpec, "require", lambda self: load(dtype=self.dtype))
    assert main([name, *COMMANDS[name].split(), "--dtype", "bfloat16"]) == 1
    assert seen == ["bfloat16"], capsys.readouterr().err


def test_no_command_that_loads_a_model_is_missing(capsys):
    loading = set()
    for name in commands():
        main([name, "--help"])
        if "--adapter" in capsys.readouterr().out:
            loading.add(name)
    assert loading - TRAINS == set(COMMANDS)


def test_a_server_names_the_types_that_it_takes():
    with pytest.raises(ValueError, match="dtype 'int3': use float32, bfloat16 or float16"):
        spec.RewardSpec(dtype="int3").require()
    with pytest.raises(ValueError, match="dtype='bfloat16' belongs to reward='zoomiqa'"):
        spec.RewardSpec(reward="niqe", dtype="bfloat16")
    built = spec.RewardSpec(dtype="bfloat16").build()[0]
    assert str(built.iqa.checkpoint.dtype) == "torch.bfloat16"
