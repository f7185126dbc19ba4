"""Import of an official-style `protocol.py`: read, never run. The stand-in holds texts of our own."""

import subprocess
import sys
from pathlib import Path

import pytest

from zoomiqa_reward.cli.main import main
from zoomiqa_reward.protocol import CropPolicy, Decoding, Protocol, ProtocolError, import_official
from zoomiqa_reward.protocol.official import decoding_of, read_constants

STAND_IN = '''
"""Stand-in: importing this file must fail."""
from __future__ import annotations
import textwrap
import a_package_that_does_not_exist
from typing import Final

raise RuntimeError("this file was run")

TAG = "answer"
STAGE1_PROMPT = (
    "Judge the picture. {question} "
    "Reply <answer>{{\\"rating\\": 1.00}}</answer>."
)
STAGE2_PROMPT: str = """Look again: {question} Reply {{"rating": 1.00}}.
"""
RANDOM_QUESTIONS = ["Is it sharp?", "Is it " + "noisy?"]
GENERATION_CONFIG: Final = {
    "do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 40, "max_new_tokens": 2 * 256, "use_cache": True,
}

def parse(text):
    raise RuntimeError("this function was run")
'''


def write(tmp_path: Path, text: str = STAND_IN) -> Path:
    path = tmp_path / "protocol.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_questions_and_decoding_are_read_without_running(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert subprocess.run([sys.executable, path], capture_output=True, check=False).returncode != 0  # it cannot run
    modules = set(sys.modules)
    protocol = import_official(path)
    assert "a_package_that_does_not_exist" not in sys.modules
    assert {name for name in set(sys.modules) - modules if "protocol" in name} == set()
    assert protocol.round1.render("Why?") == 'Judge the picture. Why? Reply <answer>{"rating": 1.00}</answer>.'
    assert protocol.round2.render("Why?") == 'Look again: {question} Reply {{"rating": 1.00}}.\n'
    assert protocol.questions == ("Is it sharp?", "Is it noisy?")
    assert protocol.decoding == Decoding(temperature=1.0, top_p=0.9, top_k=40, max_new_tokens=512)


def test_what_the_file_does_not_say_is_official_behaviour(tmp_path: Path) -> None:
    protocol = import_official(write(tmp_path))
    assert protocol.direct_prefix == '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": '
    assert protocol.crop == CropPolicy(min_area_frac=0.25, max_area_frac=0.75, min_side_px=28)
    assert protocol.image_labels == ("Original image: ", "Cropped Image: ")
    assert (protocol.image_order, protocol.history_style) == ("text_first", "question_answer")
    assert protocol.label_metrics == ()


def test_out_is_written_and_loads_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert import_official(path, tmp_path / "p.json") == Protocol.load(tmp_path / "p.json")
    assert import_official(path, tmp_path) == Protocol.load(tmp_path)


def test_constants_that_stand_there_are_used(tmp_path: Path) -> None:
    more = """
DEFAULT_QUESTION = "Is it noisy?"
ORIGINAL_IMAGE_LABEL = "All: "
CROPPED_IMAGE_LABEL = "Part: "
MIN_AREA_RATIO, other = 0.2, 3
MIN_AREA_RATIO = 1 / 5
CROP_MAX_AREA = 0.8
_MIN_SIDE = 14 * 2
MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = 1280 * 28 * 28
"""
    protocol = import_official(write(tmp_path, STAND_IN + more))
    assert protocol.questions == ("Is it noisy?", "Is it sharp?")
    assert protocol.image_labels == ("All: ", "Part: ")
    assert protocol.crop == CropPolicy(min_area_frac=0.2, max_area_frac=0.8, min_side_px=28)
    assert (protocol.min_pixels, protocol.max_pixels) == (3136, 1003520)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("MAX_PIXELS = 2**20 - 1", "max_pixels", 2**20 - 1),
        ("MAX_PIXELS = 1280 * 28 ** 2", "max_pixels", 1280 * 28**2),
        ("questions = list(RANDOM_QUESTIONS)\nfor question in questions: print(question)", "questions",
         ("Is it sharp?", "Is it noisy?")),
        ("MAX_CROP_AREA = 1 - 1/8", "crop", CropPolicy(max_area_frac=0.875)),
        ("N = int('2048')\nGENERATION_CONFIG = dict(do_sample=True, temperature=.7, max_new_tokens=N)", "decoding",
         Decoding(temperature=0.7, max_new_tokens=2048)),
        ("BASE = {'do_sample': True}\nGENERATION_CONFIG = {**BASE, 'max_new_tokens': 2 << 10, 'top_k': -(-7 // 2)}",
         "decoding", Decoding(temperature=1.0, max_new_tokens=2048, top_k=4)),
    ],
)  # fmt: skip
def test_arithmetic_is_read(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert getattr(import_official(write(tmp_path, f"{STAND_IN}\n{text}")), key) == value


def test_the_command_does_not_replace_the_file_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    path = write(tmp_path / "src")
    assert main(["protocol", "import", str(tmp_path), "--out", str(path), "--overwrite"]) == 1
    assert path.read_text(encoding="utf-8") == STAND_IN


def test_other_names_for_the_same_things(tmp_path: Path) -> None:
    text = """
_ROUND_1_PROMPT = "First. {question}"
ROUND_2_PROMPT = "Second."
DEFAULT_QUESTION = "Good?"
DEFAULT_GENERATION_CONFIG = GenerationConfig(do_sample=False, max_new_tokens=9)
"""
    protocol = import_official(write(tmp_path, text))
    assert (protocol.round1.text, protocol.round2.text, protocol.questions) == (
        "First. {question}", "Second.", ("Good?",),
    )  # fmt: skip
    assert protocol.decoding == Decoding(temperature=0.0, max_new_tokens=9)


def test_a_first_prompt_without_question_is_sent_as_it_stands(tmp_path: Path) -> None:
    text = STAND_IN.replace('{question} "', '"').replace("Judge the picture.", "Judge. {free}")
    assert import_official(write(tmp_path, text)).round1.render("Why?").startswith("Judge. {free}")


def test_a_repository_is_searched(tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    expected = import_official(write(tmp_path / "src" / "deep"))
    assert import_official(tmp_path) == expected
    write(tmp_path / "src")
    with pytest.raises(ProtocolError, match=r"found 2 .*name the file"):
        import_official(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "STAGE1_PROMPT = 'x'\nOTHER = 2",
            "no constant STAGE2_PROMPT, RANDOM_QUESTIONS; needed: .*; found: OTHER, STAGE1",
        ),
        ("", "found: no constants"),
        ("def broken(:", "is not a Python file"),
        ("x = '\0'", "is not a Python file"),
        (STAND_IN.replace('"Judge the picture.', '"Judge {picture}.'), "doubled braces"),
        (STAND_IN + "STAGE2_PROMPT = 3", "STAGE2_PROMPT is 3; expected a text"),
        (STAND_IN + "STAGE2_PROMPT = ' '", "expected a text"),
        (STAND_IN + "STAGE2_PROMPT = load()", r"STAGE2_PROMPT = load\(\) is not understood without running the file"),
        (STAND_IN + "MAX_PIXELS = 4 if BIG else 8", r"line 24: MAX_PIXELS = 4 if BIG else 8 is not understood"),
        (STAND_IN + "GENERATION_CONFIG = dict(max_new_tokens=LATER)", r"dict\(max_new_tokens=LATER\) is not"),
        (STAND_IN + "if BIG:\n    MAX_PIXELS = 8", "line 24: if BIG: MAX_PIXELS = 8 is not understood"),
        (STAND_IN + "GENERATION_CONFIG['top_k'] = 9", r"line 24: GENERATION_CONFIG\['top_k'\] = 9 is not"),
        (STAND_IN + "RANDOM_QUESTIONS.append('Good?')", r"line 24: RANDOM_QUESTIONS\.append\('Good\?'\) is not"),
        (STAND_IN + "_CROP_MIN_SIDE = 9 ** 9 ** 9", "_CROP_MIN_SIDE = .* is not understood"),
        (STAND_IN + "RANDOM_QUESTIONS = []", "RANDOM_QUESTIONS must be a list"),
        (STAND_IN + "RANDOM_QUESTIONS = [1]", "RANDOM_QUESTIONS must be a list"),
        (STAND_IN + "GENERATION_CONFIG = 'fast'", "GENERATION_CONFIG is a str"),
        (STAND_IN + "GENERATION_CONFIG = {'do_sample': True, 'top_p': 'high'}", "top_p is 'high'; expected a number"),
        (STAND_IN + "MIN_AREA = 784", "crop areas 784..0.75"),
        (STAND_IN + "MIN_PIXELS = 10**9\nMIN_PIXELS = 1000000000", "at most max_pixels"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProtocolError, match=message) as caught:
        import_official(path, tmp_path / "out.json")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="no such file; pass the official evaluator's"):
        import_official(tmp_path / "gone.py")
    with pytest.raises(ProtocolError, match=r"found 0 \(none\)"):
        import_official(tmp_path)
    (tmp_path / "protocol.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProtocolError, match="cannot be read"):
        import_official(tmp_path)


def test_constants_are_evaluated_from_the_syntax_tree(tmp_path: Path) -> None:
    text = '''
A = B = "x"
C = f"{A}-{B}!"
D = """
  padded
  """.strip()
E = textwrap.dedent("""\\
    one
      two""")
F = (A, [1, -2.5], {"k": None})
G = dict(a=1, b=A)
H = A
H += "y"
lost = A
lost = open("/etc/hostname").read()
bomb = "x" * 1000000000
power = 9 ** 9 ** 9
shift = 1 << 10 ** 10
call = __import__("os").getcwd()
index = [1][0]
zero = 1 / 0
for loop in (1, 2): pass
B.attribute = 3
annotated: int
'''
    assert read_constants(write(tmp_path, text)) == {
        "A": "x", "C": "x-x!", "D": "padded", "E": "one\n  two", "F": ["x", [1, -2.5], {"k": None}],
        "G": {"a": 1, "b": "x"}, "H": "xy",
    }  # fmt: skip


def test_sloppy_escapes_in_prompts_are_read_quietly(tmp_path: Path) -> None:
    text = STAND_IN.replace("Look again:", "Look\\_again:")  # an unknown escape: Python warns and keeps both characters
    assert import_official(write(tmp_path, text)).round2.text.startswith("Look\\_again:")


def test_decoding_of_transformers_settings() -> None:
    assert decoding_of({}).temperature == 0.0
    assert decoding_of({"do_sample": True}).temperature == 1.0
    assert decoding_of({"do_sample": False, "temperature": 0.7}).temperature == 0.0
