"""The words by which a sentence claims that an image is, or is not, in a state: the English of the rules judge.

Patterns are matched on lower-case text without hyphens inside words ("over-exposed" is "overexposed"). A denied
shortage ("not sharp") is the claim of the state, a denied excess ("no noise") its denial; `claims.py` does the denying.
Usual words of quality assessment only: it was not fitted to the paraphrases of `benchmarks/planted/words.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Words:
    """Of one state; each a list of regular expressions."""

    shows: tuple[str, ...]
    """Say that the state is there."""
    lacks: tuple[str, ...]
    """Say that it is not."""


_ADVERB = r"(?:\w+ly |very |too |quite |rather |somewhat |so |fairly |still |generally |well )*"
_IS = r"(?: (?:is|are|was|were|looks?|appears?|seems?|remains?|stays?|feels?|becomes?|being))? "


def _of(nouns: str, adjectives: str) -> str:
    """Return a pattern of an adjective before its noun, or after it."""
    return rf"\b(?:{adjectives}) (?:\w+ )?(?:{nouns})\b|\b(?:{nouns})(?: \w+)?{_IS}{_ADVERB}(?:{adjectives})\b"


_CONTRAST = r"contrasts?|tonal range|dynamic range|tonal separation|tonality"
_COLOURS = r"colou?rs?|colou?ring|colou?ration|hues?|tints?|palette|saturation|tones of colou?r|chroma"
_LIGHT = r"light|lighting|illumination|brightness|exposure|luminance"
_EDGES = r"edges?|details?|contours?|outlines?|textures?|structures?|lines?|features?|focus"

LEXICON: Mapping[str, Words] = {
    "noisy": Words(
        shows=(
            r"\bnois(?!efree|eless)\w*",
            r"\bgrain(?:y|s|iness)?\b",
            r"\bspeckl\w*",
            r"\bmottl\w*",
            r"\bgritt?y?\b",
            r"\bgrittiness\b",
            r"\b(?:random|isolated|coloured|colored) (?:dots|pixels|specks|spots)\b",
            r"\bhigh iso\b|\bhighiso\b",
            r"\bsalt and pepper\b",
            r"\bstatic\b(?= pattern| noise)",
        ),
        lacks=(
            r"\bnoiseless\b",
            r"\bnoisefree\b",
            r"\bgrainfree\b",
            _of(r"surfaces?|areas?|tones?|image|picture|photo|sky", r"clean|pristine|spotless"),
        ),
    ),
    "blurred": Words(
        shows=(
            r"\bblur(?!free|less)\w*",
            r"\bout of focus\b|\boutoffocus\b",
            r"\bdefocus\w*",
            r"\bunsharp\b",
            r"\bunfocus\w*",
            r"\bsmear\w*",
            r"\bsmudg\w*",
            r"\bfuzz(?:y|iness)\b",
            r"\bmushy?\b",
            r"\bmiss(?:ed|es|ing) (?:its |the )?focus\b",
            r"\blow resolution\b|\blowresolution\b",
            r"\bsoft focus\b",
            r"\bsoftness\b",
            _of(_EDGES, r"soft|softened|hazy|indistinct|washed away|washed out|lost|vague|illdefined|smooth\w* out"),
            r"\b(?:edges?|outlines?|contours?|details?) (?:dissolves?|bleeds?|merges?)\b",
            r"\b(?:loss|lack) of (?:fine )?(?:sharpness|detail|definition|focus|crispness)\b",
            r"\bcamera shake\b",
        ),
        lacks=(
            r"\bsharp(?:ly|ness)?\b",
            r"\bblurfree\b",
            r"\bcrisp(?:ly|ness)?\b",
            r"\bin focus\b|\binfocus\b",
            r"\bwell focus\w*",
            r"\bwell defined\b|\bwelldefined\b",
            r"\b(?:cleanly |finely |fully |well )resolved\b",
            r"\bfocus\b(?: \w+)? (?:precise|accurate|exact|perfect|tack)",
            r"\bprecise focus\b",
            r"\bhigh definition\b",
        ),
    ),
    "blocky": Words(
        shows=(
            r"\bblock(?:y|ing|iness|s)\b(?! up| the)",
            r"\bmacroblock\w*",
            r"\bcompression (?:\w+ )?(?:artefact|artifact|damage|loss)\w*",
            r"\b(?:jpe?g|codec) (?:\w+ )?(?:artefact|artifact|block|compression|damage)\w*",
            r"\bmosaic\w*",
            r"\b(?:square|compression) (?:\w+ )?(?:tile|patch|block)\w*",
            r"\btil(?:es|ing|ed)\b",
            r"\bpixelat\w*",
            r"\b(?:visible|regular|pixel|8 ?px|8x8|square|block) (?:\w+ )?grid\b",
            r"\b(?:heav|strong|aggressiv|excessiv)\w*(?: \w+)? compress\w*",
            r"\bover ?compress\w*",
            r"\bcompression blocks\b",
        ),
        lacks=(
            r"\bartefactfree\b|\bartifactfree\b",
            r"\bblockfree\b",
            r"\bcompression (?:is|stays|remains) (?:light|mild|invisible|gentle)\b",
        ),
    ),
    "dark": Words(
        shows=(
            r"\bunder ?expos\w*",
            r"\b(?:too|very|overly|excessively|quite|rather) dark\b",
            r"\bdarkness\b",
            r"\bdarkened\b",
            r"\bdim(?:ly|med|ness)?\b",
            r"\bmurk\w*",
            r"\bgloom\w*",
            r"\b(?:poorly|badly|insufficiently|barely) (?:lit|illuminated)\b",
            r"\b(?:too |very |far too )little light\b",
            r"\b(?:crushed|blocked|plugged|impenetrable) (?:shadows|blacks)\b",
            r"\bexposure\b.{0,20}\btoo low\b",
            _of(_LIGHT, r"insufficient|dark|low|dim|weak|scarce|inadequate"),
            r"\blow ?light\b",
        ),
        lacks=(
            r"\bwell ?(?:lit|illuminated)\b",
            r"\bbright(?:ly)? lit\b",
            _of(_LIGHT, r"sufficient|adequate"),
            r"\bwell ?exposed\b",
            r"\b(?:balanced|correct|even|proper|good|bright) (?:\w+ )?exposure\b",
            r"\bshadows\b.{0,16}\b(?:open|legible|readable|detailed)\b",
        ),
    ),
    "bright": Words(
        shows=(
            r"\bover ?expos\w*",
            r"\b(?:too|overly|excessively) bright\b",
            r"\bblown(?: out)?\b",
            r"\bclip(?:s|ped|ping)\b",
            r"\bburn(?:t|ed|s|ing)? ?out\b",
            r"\bglar(?:e|ing)\b",
            r"\btoo much light\b",
            r"\bwashed out by (?:the )?light\b",
            r"\boverlit\b|\bover lit\b",
            _of(_LIGHT, r"excessive|glaring|blinding|too strong|too high"),
        ),
        lacks=(
            r"\bwell ?exposed\b",
            r"\b(?:balanced|correct|even|proper|good) (?:\w+ )?exposure\b",
            r"\b(?:highlights?|whites?) (?:\w+ )?(?:hold|keep|retain|preserve|show)\w*\b",
            r"\b(?:full|intact|preserved) highlights?\b",
        ),
    ),
    "flat": Words(
        shows=(
            _of(
                _CONTRAST,
                r"low|weak|poor|flat|reduced|muted|insufficient|limited|narrow|compressed|little|lacking|missing|dull",
            ),
            r"\b(?:lack|loss|lacks|absence) (?:of )?(?:\w+ )?contrast\b",
            r"\blowcontrast\b",
            r"\b(?:grey|gray|milky|foggy|hazy) (?:veil|haze|film|cast)\b",
            r"\b(?:image|picture|photo|scene) (?:\w+ )?(?:looks|is|appears) (?:flat|foggy|hazy|milky|dull|veiled)\b",
            r"\bfogg(?:y|ed)\b",
            r"\bflat tones?\b",
            r"\bflatness\b",
        ),
        lacks=(
            _of(_CONTRAST, r"rich|good|strong|high|full|wide|broad|balanced|ample|pronounced|deep|great"),
            r"\bhighcontrast\b",
            r"\bcontrasty\b",
            r"\bdeep blacks?\b",
        ),
    ),
    "harsh": Words(
        shows=(
            _of(_CONTRAST, r"harsh|excessive|extreme|exaggerated|hard|too strong|too high|overdone|severe"),
            r"\btoo much contrast\b",
            r"\b(?:hard|abrupt|harsh) (?:tonal )?transitions?\b",
            r"\bharsh(?:ness|ly)?\b",
            r"\bposteri[sz]\w*",
            r"\bmidtones?\b.{0,24}\b(?:missing|lost|gone|absent)\w*",
        ),
        lacks=(
            _of(_CONTRAST, r"balanced|gentle|soft|moderate|natural|low|flat|weak"),
            r"\b(?:rich|full) midtones\b",
            r"\bmidtones? (?:are |is )?(?:rich|preserved|full)\b",
            r"\bsmooth (?:tonal )?transitions? (?:from|between) light\b",
        ),
    ),
    "faded": Words(
        shows=(
            _of(
                _COLOURS,
                r"faded|pale|dull|washed out|drained|muted|weak|bleak|lifeless|insipid|desaturated|bland|low|"
                r"monochrome|lacking|greyish|grayish",
            ),
            r"\bdesaturat\w*",
            r"\bunder ?saturated\b",
            r"\bmonochrom\w*",
            r"\bblack ?and ?white\b",
            r"\bdrained of colou?r\b",
            r"\bcolou?rless\w*",
            r"\b(?:lack|loss|lacks|absence) (?:of )?(?:\w+ )?(?:colou?r|saturation)\w*\b",
            r"\b(?:almost|nearly) gr[ea]y\b",
            r"\bcolou?r (?:has |have )?(?:drained|faded|gone)\b",
            r"\bfad(?:ed|ing)\b",
        ),
        lacks=(
            _of(_COLOURS, r"vivid|rich|lively|vibrant|strong|saturated|bright|full|intense|deep|bold"),
            r"\bvivid\w*",
            r"\bvibran\w*",
            r"\bcolou?rful\w*",
        ),
    ),
    "garish": Words(
        shows=(
            _of(
                _COLOURS,
                r"garish|oversaturated|lurid|gaudy|neon|loud|unnatural|exaggerated|excessive|artificial|"
                r"too strong|overdone",
            ),
            r"\boversatur\w*|\bover satur\w*",
            r"\bgarish\w*",
            r"\blurid\w*",
            r"\bgaud(?:y|iness)\b",
            r"\bneon\b",
            r"\bfalse colou?rs?\b",
            r"\btoo (?:colou?rful|saturated|vivid)\b",
        ),
        lacks=(
            _of(_COLOURS, r"natural|true to life|realistic|subdued|muted|faded|pale|neutral|faithful|accurate"),
            r"\btrue to life\b",
        ),
    ),
}

COMPILED: Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    state: (re.compile("|".join(words.shows)), re.compile("|".join(words.lacks))) for state, words in LEXICON.items()
}
"""State -> patterns of `shows` and `lacks`."""
