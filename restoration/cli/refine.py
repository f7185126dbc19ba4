"""`zoomiqa refine`: restore one image, then restore again the regions that the model names.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restoration.cli import options
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward

if TYPE_CHECKING:
    from restoration.refinement import Attempt, Refined, Round
    from restoration.selection.candidates import Candidate

Out = Annotated[Path, typer.Option(help="Folder for refined.png, strip.png and rounds; an existing run continues.")]
Rounds = Annotated[int, typer.Option(help="Largest number of regions to restore again.", min=1)]
SeedsPerRound = Annotated[int, typer.Option(help="Restorations per round, and at the start.", min=1)]
Prompt = Annotated[str, typer.Option(help="What the image shows, for pipelines and rewards that take text.")]
Negative = Annotated[str, typer.Option(help="Text before the issues that the model names.")]
MinGain = Annotated[float | None, typer.Option(help="Smallest gain of rating that counts; default 0.01.", min=0)]
Slack = Annotated[
    float, typer.Option("--slack-db", help="Allowed loss of LR-consistency below the highest one kept.", min=0)
]
Regions = Annotated[
    Literal["words", "map"],
    typer.Option(help="words: the region that the model names; map: the worst view of its quality map."),
]
LinePerRound = Annotated[bool, typer.Option("--json", help="Print one JSON line per round on stdout.")]


def refine(
    image: options.ImageFile,
    out: Out = Path("refined"),
    restorer: options.RestorerName = "nano",
    rounds: Rounds = 3,
    seeds_per_round: SeedsPerRound = 4,
    seed: options.Seed = 0,
    scale: options.Scale = None,
    steps: options.Steps = None,
    prompt: Prompt = "",
    negative_prompt: Negative = "",
    tile_px: options.TilePx = None,
    colour_fix: options.ColourFix = "none",
    min_gain: MinGain = None,
    slack_db: Slack = 0.1,
    regions: Regions = "words",
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    as_json: LinePerRound = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Restore one image, then restore again the regions that the model names. The same command continues a run."""
    from restoration.refinement import refine as run
    from restoration.restorer.restorer import Restorer
    from zoomiqa_reward import ZoomIQAReward
    from zoomiqa_reward.images.loading import load_image
    from zoomiqa_reward.rewards.base import find_part
    from zoomiqa_reward.runs.outputs import require_folder

    require_folder(out)  # before the work, as the image
    pixels = load_image(image)
    given: dict[str, Any] = {"device": device, "dtype": dtype, "adapter": adapter, "protocol": protocol}
    judge = load_reward(reward, model=model, mode=mode, is_model_needed=True, **given)
    # Beside a reward without a model, the one of --model says where to look.
    assessor = None if find_part(judge, ZoomIQAReward) is not None else inputs.load_model(model, **given)
    print(f"loading restorer {restorer} ...", file=sys.stderr)
    system = Restorer.from_pretrained(
        restorer, scale=scale, steps=steps, device=device, prompt=prompt, negative_prompt=negative_prompt,
        tile_px=tile_px, colour_fix=colour_fix,
    )  # fmt: skip
    options.tell_large(pixels, system)
    result = run(
        system, image, judge, assessor=assessor, rounds=rounds, seeds_per_round=seeds_per_round, seed=seed,
        out=out, min_gain=min_gain, lr_consistency_slack_db=slack_db, regions=regions,
    )  # fmt: skip
    if as_json:
        for round_ in result.history:
            output.json_line(round_row(round_, out))
    else:
        table(result)
    notes = result.report["notes"]
    assert isinstance(notes, list)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"stopped: {result.ending}; gain over best-of-{len(result.start.candidates)}: {result.gain:+.3f}; "
        f"{out / 'refined.png'}, all rounds: {out / 'strip.png'}",
        file=sys.stderr,
    )
    return 0 if was_measured(result) else 2


def was_measured(result: "Refined") -> bool:
    """Return whether every restoration has a rating and every answer could be read."""
    attempts: list[Candidate | Attempt] = [
        *result.start.candidates,
        *(attempt for round_ in result.history for attempt in round_.attempts),
    ]
    zoom_requests = [round_.zoom_request for round_ in result.history if round_.zoom_request is not None]
    return all(attempt.valid for attempt in attempts) and all(
        zoom_request.error is None for zoom_request in zoom_requests
    )


def round_row(round_: "Round", out: Path) -> dict[str, Any]:
    """Return the JSON line of a round: its row in rounds.jsonl plus the path of its image."""
    from restoration.refinement.records import row_of

    row = row_of(round_, out)
    del row["file"]
    return row | {"image": None if round_.file is None else str(round_.file)}


def table(result: "Refined") -> None:
    """Print the rounds for people, in order."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("round", "reward", "LR dB"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("region", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("why", overflow="fold")
    for round_ in result.history:
        region = "whole" if round_.number == 0 else "-" if round_.region is None else " ".join(map(str, round_.region))
        verdict = "stop" if not round_.has_image() and round_.stop else "kept" if round_.accepted else "refused"
        numbers = output.number(round_.reward, 3), output.number(round_.lr_consistency, 2)
        shown.add_row(str(round_.number), *numbers, region, verdict, Text(round_.reason))
    output.console().print(shown)
