"""`zoomiqa best-of-n`: restore one image N times, rate the results, keep the best.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restoration.cli import options
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward

if TYPE_CHECKING:
    from restoration.selection.candidates import Candidate

Out = Annotated[
    Path, typer.Option(help="Folder for candidates, best.png, sheet.png, run.json; an existing run continues.")
]
Restorers = Annotated[
    list[str], typer.Option(help="'nano' (embedded, x4), a hub id or a folder; repeat the option for a mixed pool.")
]
Count = Annotated[int, typer.Option("--n", help="Number of candidates.", min=1)]
Prompts = Annotated[list[str], typer.Option("--prompt", help="Prompt for pipelines that take text; repeatable.")]
Negative = Annotated[str, typer.Option(help="Negative prompt.")]
Vary = Annotated[
    float | None,
    typer.Option(help="0..1: each seed sees a softer or sharper input.  [default: 0.5; plain: 0]",
                 min=0, max=1, show_default=False),
]  # fmt: skip
Plain = Annotated[
    bool,
    typer.Option("--plain/--varied", help="Vary only the seed; default: also bicubic and varied sharpness."),
]
BatchSize = Annotated[int, typer.Option(help="Candidates per call, with --batched.", min=1)]
CascadeTop = Annotated[int, typer.Option("--cascade", help="Judge this many of the best by the full answer (reason).")]
MinGain = Annotated[
    float, typer.Option(help="With --plain: stop if one more candidate should gain less rating; 0: never.", min=0)
]


def best_of_n(
    image: options.ImageFile,
    out: Out = Path("best_of_n"),
    restorer: Restorers = ["nano"],  # noqa: B006  (typer reads it, nothing writes it)
    n: Count = 8,
    seed: options.Seed = 0,
    scale: options.Scale = None,
    steps: options.Steps = None,
    prompt: Prompts = [],  # noqa: B006
    negative_prompt: Negative = "",
    tile_px: options.TilePx = None,
    colour_fix: options.ColourFix = "none",
    vary_sharpness: Vary = None,
    plain: Plain = False,
    strict: inputs.Strict = True,
    batch_size: BatchSize = 1,
    cascade: CascadeTop = 0,
    min_gain: MinGain = 0.0,
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    as_json: inputs.Json = False,
    device: inputs.Device = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Draw N restorations of one image, rate each and keep the best. The same command continues a run."""
    from restoration.restorer.restorer import Restorer
    from restoration.selection.best_of_n import Cascade
    from restoration.selection.best_of_n import best_of_n as draw
    from restoration.selection.early_stop import EarlyStop
    from restoration.selection.pool import VARY_SHARPNESS, merge_pools, varied_pool
    from zoomiqa_reward import ZoomIQAReward
    from zoomiqa_reward.images.loading import load_image
    from zoomiqa_reward.rewards.base import find_part
    from zoomiqa_reward.runs.outputs import require_folder

    if min_gain > 0 and not plain:
        raise typer.BadParameter(
            "--min-gain needs --plain: a varied pool's members are drawn once or twice, too few to foresee the next"
        )
    require_folder(out)  # before the work, as the image
    load_image(image)
    given: dict[str, Any] = {"device": device, "adapter": adapter, "protocol": protocol}
    judge = load_reward(reward, model=model, mode=mode, is_model_needed=cascade > 0, **given)
    explainer = None
    if cascade:  # the model that rates also explains; beside another reward, it is the one of --model
        of_model = find_part(judge, ZoomIQAReward)
        iqa = inputs.load_model(model, **given) if of_model is None else of_model.iqa
        explainer = Cascade(reward=ZoomIQAReward(iqa, mode="reason"), top=cascade)
    print(f"loading {', '.join(restorer)} ...", file=sys.stderr)
    restorer_options: dict[str, Any] = {
        "scale": scale,
        "steps": steps,
        "device": device,
        "negative_prompt": negative_prompt,
        "tile_px": tile_px,
        "colour_fix": colour_fix,
    }
    if plain:
        restorers = [
            Restorer.from_pretrained(name, vary_sharpness=vary_sharpness or 0.0, **restorer_options)
            for name in restorer
        ]
    else:
        vary = VARY_SHARPNESS if vary_sharpness is None else vary_sharpness
        restorers = merge_pools([varied_pool(name, vary_sharpness=vary, **restorer_options) for name in restorer])
    result = draw(
        restorers, image, judge, n=n, seed=seed, out=out, prompts=prompt or None,
        strict=strict, batch_size=batch_size, early_stop=EarlyStop(min_gain=min_gain) if min_gain > 0 else None,
        cascade=explainer,
    )  # fmt: skip
    if as_json:
        for candidate in result.order:
            output.json_line(candidate_row(candidate))
    else:
        table(result.order)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if not result.order[0].valid:
        return 1
    print(f"best: {out / 'best.png'} (seed {result.best.seed}), all: {out / 'sheet.png'}", file=sys.stderr)
    return 0 if all(candidate.valid for candidate in result.candidates) else 2


def candidate_row(candidate: "Candidate") -> dict[str, Any]:
    """Return the JSON line of one candidate; NaN becomes null."""
    names = ("rank", "index", "seed", "restorer", "prompt", "score", "std", "cascade_score", "valid", "error",
             "cascade_error", "batch_position", "batch_size", "sharpness", "same_as", "seconds")  # fmt: skip
    values = {name: getattr(candidate, name) for name in names}
    values |= {name: None for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return values | {"image": None if candidate.file is None else str(candidate.file)}


def table(order: tuple["Candidate", ...]) -> None:
    """Print the candidates for people, best first."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("rank", "score", "±", "cascade", "seed"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("candidate", overflow="fold")
    for candidate in order:
        name = Text(str(candidate.file) if candidate.file is not None else f"{candidate.index} {candidate.restorer}")
        if not candidate.valid:
            name.append(f"\nnot rated: {candidate.error}", style="red")
        numbers = [output.number(value, 2) for value in (candidate.score, candidate.std, candidate.cascade_score)]
        shown.add_row("-" if candidate.rank is None else str(candidate.rank), *numbers, str(candidate.seed), name)
    output.console().print(shown)
