"""The page: four tabs of Gradio components around a `Studio`. Everything that it needs comes from this machine."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from restoration.web import drawn
from restoration.web.studio import Studio
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.map_figure import map_figure

FONTS = ("system-ui", "sans-serif")
"""Of the reader's machine: Gradio's own themes load theirs from the network."""
CSS = """
.gradio-container { max-width: 1180px !important; margin: auto; }
footer { display: none !important; }
.zq-rating { font-size: 1.3rem; } .zq-rating b { font-size: 2.6rem; } .zq-rating span { opacity: .7; }
.zq-small { opacity: .75; font-size: .85rem; margin: .3rem 0; } .zq-none { font-size: 1.1rem; font-weight: 600; }
.zq-svg { width: 100%; max-width: 520px; } .zq-svg rect { fill: var(--color-accent); opacity: .75; }
.zq-svg text { fill: var(--body-text-color); font-size: 13px; } .zq-svg .zq-word { font-size: 11px; opacity: .7; }
.zq-svg line { stroke: var(--body-text-color); opacity: .5; }
.zq-svg .zq-mean { stroke-width: 2; opacity: 1; }
.zq-words h4 { margin: .8rem 0 .2rem; } .zq-words h4 span { float: right; font-weight: 400; opacity: .75; }
.zq-words dt { font-size: .8rem; opacity: .7; } .zq-words dd { margin: 0 0 .4rem; }
.zq-bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.zq-bar i { display: block; height: 100%; background: var(--color-accent); }
"""


def theme() -> gr.themes.Base:
    """Return Gradio's plain theme with the fonts of the reader's machine."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=("monospace",))


def build_page(studio: Studio, title: str, samples: Sequence[str], small_samples: Sequence[str]) -> gr.Blocks:
    """Return the page. title: the model and the device, in words. samples, small_samples: files to rate, to restore."""
    with gr.Blocks(title="Zoom-IQA", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            f"<h1>Zoom-IQA</h1><p>How good is an image, why, how sure, and which is best? {escape(title)}. "
            "Images stay on the machine that serves this page, and are deleted within two hours.</p>"
        )
        with gr.Tab("Rate"):
            _rate_tab(studio, samples)
        with gr.Tab("Compare"):
            _compare_tab(studio, samples)
        with gr.Tab("Best of N"):
            _best_of_n_tab(studio, small_samples)
        with gr.Tab("Quality map"):
            _map_tab(studio, samples)
    return page.queue(max_size=32, default_concurrency_limit=1)


def _rate_tab(studio: Studio, samples: Sequence[str]) -> None:
    def rate(file: str | None) -> Iterator[tuple[Any, ...]]:
        for rated in studio.rate(file):
            shown, region = drawn.regions(rated.image, rated.words)
            text = drawn.words(rated.words) if rated.will_explain else ""
            yield drawn.headline(rated), text, shown, gr.update(value=region, visible=region is not None)

    with gr.Row():
        with gr.Column():
            image = _file_input("Image to rate")
            button = gr.Button("Rate", variant="primary")
            picked = gr.Examples(list(samples), image, label="Or pick one", example_labels=_labels(samples))
            shown = _image_output("The image, and the region that the model looked at again")
            region = _image_output("That region", visible=False)
        with gr.Column():
            rating, words = gr.HTML(), gr.HTML()
    results = [rating, words, shown, region]
    running = button.click(kindly(rate), image, results, concurrency_id="judge", api_name="rate")
    emptied = _empty_for_another(image, picked, results, ["", "", None, gr.update(value=None, visible=False)], running)
    emptied.then(kindly(rate), image, results, concurrency_id="judge", api_visibility="private")


def _compare_tab(studio: Studio, samples: Sequence[str]) -> None:
    def compare(files: list[str] | None) -> Iterator[tuple[Any, ...]]:
        names = studio.names(files)
        waiting = (gr.skip(),) * 4
        for done, ranking in studio.compare(files):
            if ranking is None:
                yield (drawn.progress(done, len(names), f"{done} of {len(names)} rated, next: {names[done]}"), *waiting)
                continue
            keys = studio.keys(files)
            first, second = keys[ranking.order[0]], keys[ranking.order[-1]]
            left, right, note = studio.side_by_side(files, first, second)
            choices = [(names[index], keys[index]) for index in ranking.order]
            head = drawn.progress(done, done, f"{done} of {done} rated. {note}")
            pick = (gr.update(choices=choices, value=value) for value in (first, second))
            yield head, drawn.table(names, ranking), (left, right), *pick

    def show(files: list[str] | None, first: str | None, second: str | None) -> tuple[Any, str]:
        left, right, note = studio.side_by_side(files, first, second)
        return (left, right), f'<p class="zq-small">{escape(note)}</p>'

    with gr.Row():
        with gr.Column():
            files = _file_input("Versions of one image", file_count="multiple")
            button = gr.Button("Rate and rank", variant="primary")
            picked = gr.Examples(
                [[list(samples)]], files, label="Or take", example_labels=["four versions of one photograph"]
            )
        with gr.Column():
            status = gr.HTML()
            ranks = gr.Dataframe(headers=["rank", "image", "rating", "±", "remark"], interactive=False, wrap=True,
                                 column_widths=["17%", "27%", "19%", "13%", "24%"])  # fmt: skip
    with gr.Row():
        first = gr.Dropdown([], label="Left", interactive=True)
        second = gr.Dropdown([], label="Right", interactive=True)
    slider = gr.ImageSlider(label="Left and right", format="png", interactive=False, max_height=640)
    note = gr.HTML()
    results = [status, ranks, slider, first, second]
    running = button.click(kindly(compare), files, results, concurrency_id="judge", api_name="compare")
    nothing = gr.update(choices=[], value=None)
    _empty_for_another(files, picked, [*results, note], ["", None, None, nothing, nothing, ""], running)
    gr.on([first.input, second.input], kindly(show), [files, first, second], [slider, note], api_name="side_by_side")


def _map_tab(studio: Studio, samples: Sequence[str]) -> None:
    def quality_map(file: str | None) -> tuple[Any, str]:
        image, quality = studio.map(file)
        return map_figure(image, quality, name=Path(file or "").name), drawn.map_notes(quality)

    with gr.Row():
        with gr.Column():
            image = _file_input("Image to map")
            button = gr.Button("Map", variant="primary")
            picked = gr.Examples(list(samples), image, label="Or pick one", example_labels=_labels(samples))
            notes = gr.HTML()
        with gr.Column(scale=2):
            figure = _image_output("Quality map", show_label=False)
    results = [figure, notes]
    running = button.click(kindly(quality_map), image, results, concurrency_id="judge", api_name="quality_map")
    emptied = _empty_for_another(image, picked, results, [None, ""], running)
    emptied.then(kindly(quality_map), image, results, concurrency_id="judge", api_visibility="private")


def _best_of_n_tab(studio: Studio, samples: Sequence[str]) -> None:
    limits = studio.limits

    def best_of_n(file: str | None, n: float, seed: float, how: str) -> Iterator[tuple[Any, ...]]:
        for state in studio.best_of_n(file, int(n), int(seed), shrink=how == "shrink it"):
            best = state.order[0]
            pair = (state.doing_nothing, best.image) if best.has_image() else None
            yield drawn.drawing_progress(state), drawn.gallery(state), pair

    with gr.Row():
        with gr.Column():
            image = _file_input(f"Low-quality image, up to {limits.max_input_px} px per side")
            how = gr.Radio(["take its middle", "shrink it"], value="take its middle", label="If it is larger")
            n = gr.Slider(1, limits.max_candidates, value=min(8, limits.max_candidates), step=1, label="Candidates (N)")
            seed = gr.Number(0, label="Seed", precision=0)
            with gr.Row():
                button = gr.Button("Restore", variant="primary")
                stop = gr.Button("Stop")
            picked = gr.Examples(list(samples), image, label="Or pick one", example_labels=_labels(samples))
        with gr.Column():
            status = gr.HTML()
            slider = gr.ImageSlider(label="Enlarged input (bicubic) and best", format="png", interactive=False)
    candidates = gr.Gallery(label="Candidates, best first", format="png", columns=3, height="auto", interactive=False)
    results = [status, candidates, slider]
    running = button.click(kindly(best_of_n), [image, n, seed, how], results, concurrency_id="restorer",
                           api_name="best_of_n")  # fmt: skip
    stop.click(None, cancels=running)
    _empty_for_another(image, picked, results, ["", None, None], running)


def _empty_for_another(file: gr.File, picked: gr.Examples, results: list[Any], empty: list[Any], running: Any) -> Any:
    """Stop `running` and empty the results when another file is chosen: what they show belongs to the one before.

    picked: the examples that fill `file`. empty: a value for each of the results. Return the event of an upload.
    """
    options: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on([file.clear, file.delete], lambda: empty, None, results, cancels=running, **options)
    picked.load_input_event.then(lambda: empty, None, results, cancels=running, **options)
    return file.upload(lambda: empty, None, results, cancels=running, **options)


def _file_input(label: str, **options: Any) -> gr.File:
    """Return a place for files of any kind: an image component refuses other files without a word."""
    return gr.File(label=label, type="filepath", height=140, **options)


def _image_output(label: str, **options: Any) -> gr.Image:
    buttons: list[Any] = ["download", "fullscreen"]  # none that publishes the image
    return gr.Image(label=label, format="png", interactive=False, buttons=buttons, **options)


def _labels(files: Sequence[str]) -> list[str]:
    return [Path(file).stem.replace("_", " ") for file in files]


def kindly(handler: Callable[..., object]) -> Callable[..., Iterator[object]]:
    """Return the handler with its errors as messages for the reader; no message holds a traceback or a place on disk.

    Our own errors and wrong values are shown in full. Anything else goes to the log of the server.
    """

    @functools.wraps(handler)
    def guarded(*args: object) -> Iterator[object]:
        try:
            result = handler(*args)
            if isinstance(result, Iterator):
                yield from result
            else:
                yield result
        except (ZoomIQAError, ValueError) as error:
            raise _message(str(error)) from error
        except Exception as error:
            logging.getLogger(__name__).exception("the web page could not answer")
            raise _message("this could not be done; the terminal of the server says why") from error

    return guarded


def _message(text: str) -> gr.Error:
    return gr.Error(escape(text), duration=None, print_exception=False)
