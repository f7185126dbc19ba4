"""Letters of any script: drawn by a font that has them, else written as an escape, never an empty box."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from zoomiqa_reward.images import lettering
from zoomiqa_reward.images.lettering import draw_text, installed_fonts, text_width, wrap

ALIF, CHINESE, PARTY = "ا", "中", "🎉"


def forget():
    for cached in (lettering._runs, lettering._file_for, lettering._has, lettering._probe, lettering._font):
        cached.cache_clear()
    installed_fonts.cache_clear()


def make_font(file, letters):
    """A font whose letters are filled squares, and whose sign for a missing one is a thin bar."""
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    glyphs = {}
    for name in names:
        pen = TTGlyphPen(None)
        right = 100 if name == ".notdef" else 800
        pen.moveTo((0, 0))
        for corner in ((0, 700), (right, 700), (right, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system whose only fonts are those of the folder that comes back."""
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    monkeypatch.setattr(lettering.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    forget()
    yield fonts
    forget()


def drawn(text, size=20):
    image = Image.new("L", (600, 40))
    draw_text(ImageDraw.Draw(image), (5, 5), text, size, 255)
    return np.asarray(image)


def test_without_a_font_a_letter_is_named(system):
    assert (drawn(f"a{CHINESE}.png") == drawn("a\\u4e2d.png")).all()
    assert (drawn(f"{PARTY}") == drawn("\\U0001f389")).all()
    assert text_width(CHINESE, 20) == text_width("\\u4e2d", 20)


def test_an_installed_font_draws_what_it_has(system):
    make_font(system / "squares.ttf", CHINESE)
    assert text_width(CHINESE, 20) == 20
    assert (drawn(CHINESE) == 255).sum() == pytest.approx(16 * 14, abs=20)
    assert (drawn(f"a {CHINESE}") != drawn("a \\u4e2d")).any()
    assert (drawn(PARTY) == drawn("\\U0001f389")).all()  # the bar of a missing letter is not drawn


def test_one_text_may_need_several_fonts(system):
    make_font(system / "one.ttf", CHINESE)
    make_font(system / "two.ttf", ALIF)
    (system / "broken.ttf").write_bytes(b"no font")
    runs = lettering._runs(f"a{CHINESE}b{ALIF}{PARTY}")
    assert [piece for piece, _ in runs] == ["a", CHINESE, "b", ALIF, "\\U0001f389"]
    assert [file and file.rpartition("/")[2] for _, file in runs] == [None, "one.ttf", None, "two.ttf", None]


def test_plain_english_needs_no_font_of_the_system(system):
    assert lettering._runs("photo 12.png") == (("photo 12.png", None),)
    assert not installed_fonts.cache_info().currsize


def test_lines_break_at_blanks_and_within_long_words():
    text = "one two three " + "x" * 60
    lines = wrap(text, 14, 120)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(text_width(line, 14) <= 120 for line in lines)
    assert lines[0] == "one two three"
    short = wrap(text, 14, 120, 2)
    assert len(short) == 2
    assert short[-1].endswith("…")
    assert text_width(short[-1], 14) <= 120
    assert wrap(text, 14, 1.0)  # narrower than a letter: one letter per line
