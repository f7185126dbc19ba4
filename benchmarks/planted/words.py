"""What planted cases say about a degradation: plain words, and paraphrases.

The paraphrases were written as free descriptions of each state, before `lexicon.py` existed and without its words in
view; one author wrote both, so they tell how the rules judge meets other wordings, not how it meets another writer.
`{where}` is an adverbial: "over the whole frame", "in the upper left".
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """Sentences about one state of an image, without their full stops."""

    present: tuple[str, ...]
    """Claim that the state is there."""
    absent: tuple[str, ...]
    """Claim that it is not."""


PLAIN: Mapping[str, Wordings] = {
    "noisy": Wordings(
        present=("Grainy noise is visible {where}", "Strong image noise shows {where}"),
        absent=("There is no noise {where}", "Surfaces are clean and free of noise {where}"),
    ),
    "blurred": Wordings(
        present=("Soft blur covers the detail {where}", "The picture is out of focus {where}"),
        absent=("Detail is sharp {where}", "There is no blur {where}"),
    ),
    "blocky": Wordings(
        present=("Compression blocks are visible {where}", "JPEG blocking artefacts show {where}"),
        absent=("There are no compression artefacts {where}", "No blocking can be seen {where}"),
    ),
    "dark": Wordings(
        present=("The picture is under-exposed {where}", "The light is too dark {where}"),
        absent=("The picture is not under-exposed {where}", "The brightness is sufficient {where}"),
    ),
    "bright": Wordings(
        present=("The picture is over-exposed {where}", "The picture is too bright {where}"),
        absent=("There is no over-exposure {where}", "The picture is not too bright {where}"),
    ),
    "flat": Wordings(
        present=("The contrast is low {where}", "Flat contrast dulls the picture {where}"),
        absent=("The contrast is rich {where}", "The picture does not lack contrast {where}"),
    ),
    "harsh": Wordings(
        present=("The contrast is harsh {where}", "Excessive contrast hardens the picture {where}"),
        absent=("The contrast is not harsh {where}", "The contrast is well balanced {where}"),
    ),
    "faded": Wordings(
        present=("The colours are faded {where}", "Colours are desaturated {where}"),
        absent=("The colours are vivid {where}", "The colours are not faded {where}"),
    ),
    "garish": Wordings(
        present=("The colours are garish {where}", "Colours are over-saturated {where}"),
        absent=("The colours are not over-saturated {where}", "The colours look natural {where}"),
    ),
}

PARAPHRASED: Mapping[str, Wordings] = {
    "noisy": Wordings(
        present=(
            "A sandy speckle is sprinkled {where}",
            "Random dots dance over plain surfaces {where}, as from a sensor pushed too far",
            "High-ISO mottling breaks up the smooth tones {where}",
            "Even plain surfaces look gritty {where}",
            "Stray pixels are strewn {where} like salt",
            "Tiny fluctuations crawl through every even tone {where}",
        ),
        absent=(
            "Plain surfaces are perfectly clean {where}, with not a speck of grit",
            "Even areas stay calm and silky {where}",
            "The sensor left no random speckle {where}",
            "Tones are pristine {where}",
        ),
    ),
    "blurred": Wordings(
        present=(
            "Outlines melt into one another {where}",
            "Fine structure looks as if seen through frosted glass {where}",
            "The lens seems to have missed its focus {where}",
            "Contours are smeared and woolly {where}",
            "Texture has lost its bite {where}",
            "The drawing is mushy {where}",
        ),
        absent=(
            "Every edge is razor-crisp {where}",
            "Fine threads and hairs are cleanly resolved {where}",
            "Focus is spot on {where}",
            "Nothing looks smeared {where}",
        ),
    ),
    "blocky": Wordings(
        present=(
            "Square tiles show up {where}",
            "The codec has carved the picture into small squares {where}",
            "An eight-pixel grid shines through {where}",
            "Overly aggressive compression leaves a mosaic {where}",
            "Gradients break into little rectangles with hard borders {where}",
            "Low-bitrate tiling spoils the picture {where}",
        ),
        absent=(
            "No tile borders can be made out {where}",
            "Compression has left no footprint {where}",
            "Gradients flow without any visible grid {where}",
            "One looks in vain for codec squares {where}",
        ),
    ),
    "dark": Wordings(
        present=(
            "Shadows swallow most of the scene {where}",
            "The scene is plunged into gloom {where}",
            "Far too little light reached the sensor {where}",
            "Everything looks murky and dim {where}",
            "Hardly anything emerges from the blackness {where}",
            "The exposure was cut too short {where}",
        ),
        absent=(
            "Light is ample {where}",
            "Shadows stay open and legible {where}",
            "Nothing is swallowed by shadow {where}",
            "The scene is well lit {where}",
        ),
    ),
    "bright": Wordings(
        present=(
            "Highlights are blown to pure white {where}",
            "The scene is bleached by too much light {where}",
            "Bright areas clip and lose all drawing {where}",
            "A glaring wash of light lies {where}",
            "The sensor was flooded with light {where}",
            "Whites burn out {where}",
        ),
        absent=(
            "Highlights hold all their detail {where}",
            "No area burns out {where}",
            "Whites keep their drawing {where}",
            "Nothing is bleached {where}",
        ),
    ),
    "flat": Wordings(
        present=(
            "Tones huddle together in a narrow grey band {where}",
            "A grey veil lies over the picture {where}",
            "Lights and darks hardly differ {where}",
            "The tonal range is compressed and lifeless {where}",
            "The picture looks foggy and dull {where}",
            "Blacks are merely grey {where}",
        ),
        absent=(
            "Lights and darks are well separated {where}",
            "The tonal range is wide {where}",
            "No grey veil dulls the picture {where}",
            "Tones span from deep black to bright white {where}",
        ),
    ),
    "harsh": Wordings(
        present=(
            "Lights and darks clash brutally {where}",
            "Shadows block up while lights glare {where}",
            "Midtones have all but vanished between black and white {where}",
            "The tonal curve is pushed to extremes {where}",
            "Transitions jump from pitch black to chalk white {where}",
            "The picture has a hard, posterish punch {where}",
        ),
        absent=(
            "Midtones are plentiful and gentle {where}",
            "Transitions from light to shade are smooth {where}",
            "The tonal curve is not pushed {where}",
            "Shadows keep their gradation beside the lights {where}",
        ),
    ),
    "faded": Wordings(
        present=(
            "Hues look drained {where}",
            "The palette is nearly monochrome {where}",
            "Colour has bled out of the scene {where}",
            "Everything tends to grey {where}, like an old print",
            "Tints are pale and anaemic {where}",
            "The picture is all but black-and-white {where}",
        ),
        absent=(
            "Hues are lively {where}",
            "The palette is rich {where}",
            "Nothing looks drained of colour {where}",
            "Tints keep their full strength {where}",
        ),
    ),
    "garish": Wordings(
        present=(
            "Hues scream {where}",
            "The palette is pushed into neon {where}",
            "Reds and greens glow unnaturally {where}",
            "Colour is cranked up far beyond nature {where}",
            "Skin and foliage look candy-coloured {where}",
            "Tints are lurid {where}",
        ),
        absent=(
            "Hues are true to life {where}",
            "The palette is restrained {where}",
            "Nothing glows with false colour {where}",
            "Tints look believable {where}",
        ),
    ),
}
