"""Every program on wrong inputs: one line that names the input and what to do, exit code 1 or 2, no traceback."""

import importlib
import json
import re
import shutil
import tomllib

import pytest
import torch
from conftest import NANO, ROOT
from PIL import Image
from test_house_rules import module_files
from tiny import make_tiny_checkpoint

from zoomiqa_reward.cli import main as cli

PIPELINE = ROOT / "restoration" / "checkpoints" / "nano"
MODEL = {
    "--device foo": "'foo'", "--model cut": "model.safetensors", "--model no_tokenizer": "tokenizer.json",
    "--model no_processor": "preprocessor_config.json", "--model somebody/something": "network",
    "--model nosuch": "'nosuch'", "--model text.txt": "text.txt", "--model empty": "config.json",
}  # fmt: skip
"""Wrong options about a model -> what the message must name."""
ASKING = {"--protocol nosuch.json": "nosuch.json", "--protocol text.txt": "text.txt", "--adapter nosuch": "nosuch"}
RESTORING = {
    "--restorer nosuch": "nosuch", "--restorer cut_pipeline": "cut_pipeline", "--restorer a/b": "network",
    "--out text.txt": "text.txt", "--out strangers": "mine.png", "--colour-fix x": "colour_fix",
}  # fmt: skip
DATA = {
    "--data nosuch=x": "nosuch", "--data koniq": "FAMILY=PATH", "--data koniq=nosuch": "nosuch",
    "--data koniq=empty": "empty", "--data csv=nosuch.csv": "nosuch.csv", "--data csv=text.txt": "text.txt",
    "--data csv=gone.csv": "gone.png", "--data json=bad.yaml": "bad.yaml",
}  # fmt: skip
FILES = {"bad.yaml": "bad.yaml", "nosuch.yaml": "nosuch.yaml", "field.yaml": "learningrate", "empty": "empty"}

COMMANDS = {
    "score": {"": "images", "photo.png --out t.txt": "t.txt", "photo.png --out no/t.csv": "no folder no",
              "photo.png --out good.csv": "--overwrite", "photo.png --out photo.png": "photo.png",
              "photo.png --config nosuch.yaml": "nosuch.yaml", "photo.png --config bad.yaml": "bad.yaml",
              "photo.png --config field.yaml": "learningrate",
              "photo.png --every 2": "--every", "photo.png --keep-up": "--keep-up", "clip.mp4 photo.png": "clip.mp4",
              "clip.mp4 --out t.csv": "--out",
              **{f"photo.png {one}": word for one, word in (MODEL | ASKING).items()}},
    "assess": {"": "images", **{f"photo.png {one}": word for one, word in (MODEL | ASKING).items()}},
    "rank": {
        "photo.png --sheet photo.png": "inputs", "photo.png --sheet other.png": "--overwrite",
        "photo.png --sheet no/s.png": "no folder no", "photo.png --sheet s.txt": ".txt", "--sheet s.png": "images",
        "photo.png --sheet s.xbm": ".xbm",
        "photo.png --mode x": "--mode", "photo.png --device foo": "'foo'", "photo.png --lq nosuch.png": "nosuch.png",
        "photo.png --reference text.txt": "text.txt", "photo.png --lq other.png --reference other.png": "one of them",
        "clip.mp4 photo.png": "clip.mp4", "clip.mp4 --sheet s.png": "--sheet", "clip.mp4 --every 0": "--every",
        "photo.png --every 2": "--every", "clip.mp4 --lq photo.png": "--lq",
    },
    "map": {
        "": "image", "nosuch.png": "nosuch.png", "text.txt": "text.txt", "photo.png --view-px 8": "--view-px",
        "photo.png --out photo.png": "inputs", "photo.png --out other.png": "--overwrite",
        "photo.png --out no/s.png": "no folder no", "photo.png --out s.txt": ".txt",
        **{f"photo.png {one}": word for one, word in (MODEL | ASKING).items()},
    },
    "protocol": {
        "import nosuch.py": "nosuch.py", "import empty": "empty", "import text.txt": "text.txt", "nosuch": "nosuch",
        "import prompts.py --out photo.png": "photo.png", "import prompts.py --out no/p.json": "no folder no",
        "import photo.png": "photo.png",
    },
    "check": {
        "--reward nosuch": "'nosuch'", "--reward no.such:thing": "no.such", "--reward os:nothing": "nothing",
        "--reward :x": "':x'", "nosuch.png": "nosuch.png", "empty": "empty", "photo.png --count 0": "--count",
        "photo.png --figure photo.png": "inputs", "photo.png --num-samples 3": "--num-samples",
        "photo.png --device foo": "'foo'",
    },
    "compare": {
        "nosuch few": "nosuch", "few empty": "empty", "few strangers": "names must be equal", "few": "B",
        "few few --sheet photo.png": "--overwrite", "few few --sheet s.txt": ".txt", "few few --out s.txt": "s.txt",
        "few few --sheet few/a.png": "inputs", "few few --reward nosuch": "nosuch", "few few --reward vif": "hr",
        "few few --top 0": "--top",
    },
    "best-of-n": {
        "nosuch.png": "nosuch.png", "text.txt": "text.txt", "empty": "empty", "photo.png --n 0": "--n",
        "photo.png --min-gain 0.1": "--plain", "photo.png --batch-size 4": "--batched",
        "photo.png --device foo": "'foo'",
        **{f"photo.png {one}": word for one, word in RESTORING.items()},
    },
    "report": {
        "nosuch": "run.json", "empty": "run.json", "photo.png": "run.json", "few --out s.txt": ".html",
        "few --images 0": "--images", "few --out nodir/r.html": "nodir", "few": "run.json",
    },
    "refine": {
        "nosuch.png": "nosuch.png", "text.txt": "text.txt", "empty": "empty", "photo.png --rounds 0": "--rounds",
        "photo.png --regions boxes": "--regions",
        "photo.png --device foo": "'foo'", **{f"photo.png {one}": word for one, word in RESTORING.items()},
    },
    "search": {
        "nosuch.png": "nosuch.png", "text.txt": "text.txt", "empty": "empty", "photo.png --n 0": "--n",
        "photo.png --by luck": "--by", "photo.png --amount 0": "--amount", "photo.png --softness 0": "--softness",
        "photo.png --view-px 64": "--view-px", "photo.png --top 2": "--top", "photo.png --softness 3": "--softness",
        "photo.png --by fusion --amount 0.2": "--amount", "photo.png --by fusion --per-round 2": "--per-round",
        "photo.png --view-px 8": "--view-px", "photo.png --top 0": "--top", "photo.png --device foo": "'foo'",
        **{f"photo.png {one}": word for one, word in RESTORING.items()},
    },
    "tune": {
        "nosuch --images many --out run": "nosuch", "nano_nft --images nosuch --out run": "nosuch",
        "nano_nft --images empty --out run": "empty", "nano_nft --images few --out run": "16 images",
        "nano_nft --images many --out run --validation nosuch": "nosuch",
        "nano_nft --images many --out run --source nosuch": "nosuch",
        "nano_nft --images many --out run --device foo": "'foo'",
        "nano_nft --images many --out run --pairs text.txt": "--pairs", "nano_nft --images many": "--out",
        "nano_nft --images many --out run --degradation x": "'x'", "nano_nft --images many --out text.txt": "text.txt",
    },
    "evaluate": {
        "nosuch --out run": "nosuch", "empty --out run": "empty", "set5 --out run": "--root",
        "realsr --root empty --out run": "empty", "few --metrics nosuch --out run": "nosuch",
        "few --degradation x --out run": "'x'", "few --reward nosuch --out run": "nosuch",
        "few --reward none --channel x --out run": "channel", "few --against nosuch --out run": "nosuch",
        "few --reward none --headline nosuch --out run": "nosuch", "few --reward none --out text.txt": "text.txt",
        "few --restorer nosuch --out run": "nosuch", "few --hr nosuch --out run": "nosuch", "few": "--out",
        "few --reward none --device foo --out run": "'foo'",
        "few --as-is --degradation mild --out run": "--degradation", "few --hr few --degradation mild --out run":
        "--degradation", "few --as-is --border-px 3 --out run": "--border-px",
        "few --metrics niqe --channel rgb --out run": "--channel",
        "few --lpips-weights w.pth --out run": "--lpips-weights",
    },
    "serve": {
        "--reward nosuch": "'nosuch'", "--reward no.such:thing": "no.such", "--model nosuch": "'nosuch'",
        "--model cut": "model.safetensors", "--device foo": "'foo'", "--host 0.0.0.0": "token",
        "--token-file nosuch": "nosuch", "--token-file blank.txt": "blank.txt", "--port 99999": "--port",
        "--protocol nosuch.json": "nosuch.json", "--reward niqe --mode reason": "mode",
        "--num-samples 2": "num_samples=2",
        "--host nosuch.invalid": "nosuch.invalid",
    },
    "web": {  # what comes before Gradio is needed
        "--host 0.0.0.0": "ZOOMIQA_TOKEN", "--port 99999": "--port", "--max-megapixels 0": "--max-megapixels",
        "--max-upload-mib 0": "--max-upload-mib", "--max-input-px 1": "--max-input-px", "nosuch": "nosuch",
        "--config field.yaml": "learningrate",
    },
}  # fmt: skip
"""Command -> wrong arguments -> what the message must name."""
TRAINER = {
    "": "--recipe", "--recipe nosuch": "nosuch", "--steps x": "--steps",
    "nosuch.yaml --recipe qwen2_5_vl_7b": "--recipe",
    **FILES,
}  # fmt: skip
NANO_TRAINING = {
    "": "--photos", "--photos nosuch": "nosuch", "--photos empty": "empty", "--photos few": "few",
    "--photos many --device foo": "'foo'", "--photos many --seconds 0": "seconds",
    "--photos many --workers 0": "workers",
    "--photos many --out text.txt": "text.txt", "--photos many --out strangers": "mine.png", "--seed x": "--seed",
}  # fmt: skip
ANY_CONFIG = "--teacher m --teacher-url http://127.0.0.1:9/v1 --out run"
MODULES = {
    "train_iqa.sft": TRAINER | {
        "tiny_sft.yaml --data nosuch.jsonl": "nosuch.jsonl", "tiny_sft.yaml --data text.txt": "text.txt",
        "tiny_sft.yaml": "data", "tiny_sft.yaml --data talk.jsonl --model nosuch": "nosuch",
        "tiny_sft.yaml --data talk.jsonl --out text.txt": "text.txt",
        "tiny_sft.yaml --data talk.jsonl --out strangers": "mine.png",
    },
    "train_iqa.grpo": TRAINER | {f"tiny_grpo.yaml {one}": word for one, word in DATA.items()} | {
        "tiny_grpo.yaml": "data",
    },
    "train_iqa.curate": {
        "": "--data", "--data koniq=nosuch": "--teacher", "--checks x": "--checks",
        f"--data csv=good.csv {ANY_CONFIG} --scale 0:100 --thresholds nosuch": "nosuch",
        f"--data csv=good.csv {ANY_CONFIG} --scale x": "--scale",
        f"--data csv=good.csv {ANY_CONFIG} --scale 0:100 --protocol nosuch": "nosuch", **FILES,
        **{f"{one} {ANY_CONFIG}": word for one, word in DATA.items()},
    },
    "train_iqa.curation.calibrate": {
        "": "--images", "--images nosuch --out t.json": "nosuch", "--images empty --out t.json": "empty",
        "--images many --count 0 --out t.json": "--count", "--images many --out mine.json": "mine.json",
        "--images many": "--overwrite", "--images many --out no/t.json": "no folder no", "--seed x": "--seed",
    },
    "zoomiqa_reward.integrations.basicsr_train": {
        "": "-opt", "-opt nosuch.yml": "nosuch.yml", "-opt empty": "empty", "-opt bad.yaml": "YAML",
        "-opt text.txt": "YAML", "-opt photo.png": "YAML", "-opt blank.txt": "blank.txt", "-opt field.yaml": "'name'",
        "-opt field.yaml --launcher x": "--launcher",
    },
    "train_iqa.evaluate": {
        "": "--data", "--data csv=good.csv --out run --scale x:y": "--scale",
        "--data csv=good.csv --scale 0:100 --out text.txt": "text.txt",
        "--data csv=good.csv --scale 0:100 --out strangers": "mine.png",
        "--data csv=good.csv --scale 0:100 --out run --calls 0": "calls",
        "--data csv=good.csv --scale 0:100 --out run --dtype int8": "int8",
        **{f"--data csv=good.csv --scale 0:100 --out run {one}": word for one, word in MODEL.items()},
        **{f"{one} --scale 0:100 --out run" if "csv" in one or "json" in one else f"{one} --out run": word
           for one, word in DATA.items()},
    },
    "train_iqa.nano.__main__": NANO_TRAINING | {
        "--photos many --people nosuch": "nosuch", "--photos many --start nosuch": "people",
        "--photos many --people empty": "people.csv", "--photos many --pairs nosuch": "nosuch", "--size x": "--size",
        "--photos many --drawn empty": "no batch", "--photos many --learning-rate 0": "--learning-rate 0",
        "--photos many --rows-scale 0": "--rows-scale 0",
    },
    "train_iqa.nano.drawn": {
        "--photos nosuch --out run": "nosuch", "--photos empty --out run": "empty", "--photos few --out run": "few",
        "--photos many --out strangers": "strangers", "--photos many --out run --workers 0": "--workers",
        "--photos many --out run --seconds 0": "--seconds", "--photos many --out run --seed x": "x",
        "--photos many --out run --large-share 2": "--large-share 2",
    },
    "train_iqa.nano.words": {f"--start nano {line}": word for line, word in NANO_TRAINING.items()} | {
        "--photos many": "--start", "--start nosuch --photos many": "nosuch",
        "--start nano --photos many --drawn empty": "no batch",
        "--start nano --photos many --learning-rate 0": "--learning-rate 0",
    },
    "restoration.nano.train": NANO_TRAINING,
    "restoration.demo": {
        "--image nosuch.png": "nosuch.png", "--image text.txt": "text.txt", "--image dot.png": "px",
        "--as-is": "--image",
        "--model nosuch": "'nosuch'", "--restorer nosuch": "nosuch", "--device foo": "'foo'",
        "--image photo.png --out text.txt": "text.txt",
    },
}  # fmt: skip
MADE = ("run", "runs", "demo", "best_of_n", "refined", "search")
"""Folders that a program may have begun."""
TALK = re.compile(r"loading|Loading|Try:|starting|\[\d")
SAME = {"train_iqa.nano.train": "train_iqa.nano.__main__", "restoration.train_nano": "restoration.nano.train"}
"""Modules with the same `main` as another one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with damaged models, data and configurations, and things of the user's."""
    home = tmp_path_factory.mktemp("wrong")
    for name in ("photo.png", "other.png", "strangers/mine.png", *(f"many/{k}.png" for k in range(16)), "few/a.png"):
        (home / name).parent.mkdir(exist_ok=True)
        Image.effect_noise((96, 88), 90).convert("RGB").save(home / name)
    Image.new("RGB", (1, 1)).save(home / "dot.png")
    (home / "empty").mkdir()
    (home / "clip.mp4").write_text("no clip at all")
    (home / "text.txt").write_text("just words: [of mine\n")
    (home / "mine.json").write_text('{"mine": 1}')
    (home / "blank.txt").write_text("\n")
    (home / "bad.yaml").write_text("a: [1,\n")
    (home / "field.yaml").write_text("learningrate: 1\n")
    (home / "good.csv").write_text("image,mos\n" + "".join(f"many/{k}.png,{k}\n" for k in range(16)))
    (home / "gone.csv").write_text("image,mos\ngone.png,50\n")
    (home / "prompts.py").write_text(
        'STAGE1_PROMPT = "Rate it. {question}"\nSTAGE2_PROMPT = "Again."\nRANDOM_QUESTIONS = ["How good?"]\n'
    )
    answer = '<think>Fine.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}</answer>'
    (home / "talk.jsonl").write_text(json.dumps({"image": "photo.png", "rating": 3.25, "rounds": [answer]}) + "\n")
    for name in ("sft", "grpo"):
        (home / f"tiny_{name}.yaml").write_text("out: run\nmodel: {name: good, device: cpu}\n")
    make_tiny_checkpoint(home / "good")
    for name, gone in (("cut", None), ("no_tokenizer", "tokenizer*"), ("no_processor", "*processor*")):
        shutil.copytree(home / "good", home / name)
        for file in (home / name).glob(gone or "nothing"):
            file.unlink()
    for folder, source in ((home / "cut", None), (home / "cut_pipeline", PIPELINE)):
        if source is not None:
            shutil.copytree(source, folder)
        for weights in folder.rglob("*.safetensors"):
            weights.write_bytes(weights.read_bytes()[:-100])
    return home


@pytest.mark.parametrize("threads", [97, None])
def test_threads_that_a_program_sets_are_set_back(threads):
    """The first case sets them, as a program does; the second one finds what the first one found."""
    assert torch.get_num_threads() != 97
    if threads is not None:
        torch.set_num_threads(threads)


def programs():
    """Return the modules that `python -m` starts, other than `zoomiqa` itself."""
    found = {name for name, file in module_files().items() if '__name__ == "__main__"' in file.read_text()}
    return found - {"zoomiqa_reward.cli.main"}


def test_every_program_is_tried_with_six_wrong_inputs():
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][cli.GROUP]
    assert set(COMMANDS) == set(registered)
    assert set(MODULES) == programs() - set(SAME)
    assert all(len(cases) >= 6 for cases in (*COMMANDS.values(), *MODULES.values()))
    for name, other in SAME.items():
        assert importlib.import_module(name).main is importlib.import_module(other).main


def start(program, words):
    if program in COMMANDS:
        return cli.main([program, *words])
    try:
        return importlib.import_module(program).main(words)
    except SystemExit as stop:
        return stop.code


CASES = [(name, given, word) for table in (COMMANDS, MODULES) for name, cases in table.items()
         for given, word in cases.items()]  # fmt: skip


@pytest.mark.parametrize(("program", "given", "word"), CASES, ids=[f"{name} {given}" for name, given, _ in CASES])
def test_a_wrong_input_is_named_in_one_line(program, given, word, place, monkeypatch, capsys):
    assert NANO.is_dir()
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}
    monkeypatch.chdir(place)
    monkeypatch.delenv("ZOOMIQA_TRACEBACK", raising=False)
    try:
        code = start(program, given.split())
        out, err = capsys.readouterr()
    finally:
        shutil.rmtree(place / "run", ignore_errors=True)
        shutil.rmtree(place / "runs", ignore_errors=True)
        shutil.rmtree(place / "demo", ignore_errors=True)
        shutil.rmtree(place / "best_of_n", ignore_errors=True)
        shutil.rmtree(place / "refined", ignore_errors=True)
        shutil.rmtree(place / "search", ignore_errors=True)
    assert code in (1, 2), (code, out, err)
    said = [
        line for line in re.split(r"[\r\n]+", err) if line and not re.match(r"(loading|Loading|Try:|starting|\[)", line)
    ]
    assert said, "nothing was said"
    assert any(word in line for line in said), err
    assert "Traceback" not in err
    assert 'File "' not in err
    assert sum(len(line) for line in said) < 900, "one line, please"
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a file of the user's was touched"
