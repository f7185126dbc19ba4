"""`zoomiqa check`: is this reward fit for best-of-N, for DPO, for gradients?

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward
from zoomiqa_reward.runs.progress import progress

Photographs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Clean photographs: files, folders or patterns; default: four of scikit-image.", show_default=False
    ),
]
NumSamples = Annotated[
    int, typer.Option(help="Sampled answers per rating in mode reason; above 1 each call samples anew.", min=1)
]
FigureFile = Annotated[Path | None, typer.Option("--figure", help="File for the figure of the ladders.")]
Count = Annotated[int | None, typer.Option(help="Use only the first COUNT photographs.", min=1)]
CropPx = Annotated[int, typer.Option(help="Side of the middle square of each photograph that is used.", min=64)]
Repeats = Annotated[int, typer.Option(help="How often the same image is scored.", min=2)]


def check(
    images: Photographs = None,
    reward: RewardName = "zoomiqa",
    figure: FigureFile = None,
    overwrite: inputs.Overwrite = False,
    count: Count = None,
    crop_px: CropPx = 288,
    repeats: Repeats = 3,
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    num_samples: NumSamples = 1,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Check a reward on photographs: order, empty images, noise, transport, gradients, speed.

    JSON on stdout, a table on stderr. Exit code 0: every use has a verdict, fit or not fit; 2: some use has none (too
    few images, undecided, not measured), or some image could not be used or measured.
    """
    from rich.console import Console

    from zoomiqa_reward.check import bundled_photographs, ladder_figure, load_photographs, run_check
    from zoomiqa_reward.check.report import print_report

    if num_samples > 1 and mode != "reason":
        raise ValueError(f"--num-samples {num_samples} belongs to a Zoom-IQA model in --mode reason: only it samples")
    sources = inputs.expand(images) if images else [str(path) for path in bundled_photographs()]
    if figure is not None:
        from zoomiqa_reward.runs.outputs import claim_file

        claim_file(figure, inputs=[*(images or []), *sources], overwrite=overwrite, suffixes=True)
    photographs, refused = load_photographs(sources[:count], crop_px=crop_px)
    for _, reason in refused:
        print(f"not used: {reason}", file=sys.stderr)
    if not photographs:
        raise ValueError("none of the photographs can be used; give clean ones with detail in the middle")
    checked = load_reward(
        reward, model=model, mode=mode, question=question, num_samples=num_samples, device=device, dtype=dtype,
        adapter=adapter, protocol=protocol,
    )  # fmt: skip
    report = run_check(checked, progress(photographs, len(photographs), "checking", streaming=False), repeats=repeats)
    output.json_line(report.as_json() | {"not_used": [reason for _, reason in refused]})
    print_report(report, Console(stderr=True, width=None if sys.stderr.isatty() else 120, highlight=False))
    if figure is not None:
        ladder_figure(report, figure, overwrite=overwrite)
        print(f"ladders: {figure}", file=sys.stderr)
    is_whole = not refused and not report.errors and all(verdict.is_reached for verdict in report.verdicts)
    return 0 if is_whole else 2
