"""`zoomiqa evaluate`: a restorer on a dataset, the value of choosing among its candidates, with provenance.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from restoration.cli import options
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardOrNone, load_reward, refuse_model_options
from zoomiqa_reward.runs.outputs import require_folder
from zoomiqa_reward.runs.progress import progress

if TYPE_CHECKING:
    from zoomiqa_reward.rewards.base import Reward

ROWS = ("hr", "bicubic", "worst", "mean", "best", "selected")
DEGRADATION = "realesrgan"
DEFAULT_METRICS = "fsim,vif,psnr_y,ssim_y,niqe,lr_consistency"

DatasetArgument = Annotated[
    str, typer.Argument(help="A folder of images, or a preset: set5, set14, stablesr-realsr, realsr, drealsr, ...",
                        show_default=False),
]  # fmt: skip
Out = Annotated[Path, typer.Option(help="Folder for the results; the same command continues it.")]
Root = Annotated[Path | None, typer.Option(help="Folder that holds the folders of a preset.")]
Hr = Annotated[Path | None, typer.Option(help="Folder of ground truths; DATASET then holds the inputs.")]
AsIs = Annotated[bool, typer.Option("--as-is", help="DATASET holds low-quality images without ground truth.")]
RestorerName = Annotated[str, typer.Option("--restorer", help="'nano', a hub id, a folder, or 'bicubic'.")]
Vary = Annotated[float, typer.Option(min=0, max=1, help="Each seed sees a softer or sharper input.")]
Metrics = Annotated[str, typer.Option(help="Metric names, separated by commas.")]
BorderPx = Annotated[
    int | None, typer.Option(min=0, help="Border that PSNR and SSIM cut; default: the scale (preset realsr: 0).")
]
Channel = Annotated[Literal["y", "rgb"] | None, typer.Option(help="Channel of PSNR and SSIM; default: y, the luma.")]
Headline = Annotated[str | None, typer.Option(help="The metric that judges; default: the first allowed one.")]
Against = Annotated[Path | None, typer.Option(help="Folder of another evaluation, for a paired test.")]


def evaluate(
    dataset: DatasetArgument,
    out: Out,
    root: Root = None,
    hr: Hr = None,
    as_is: AsIs = False,
    degradation: options.Degradation = DEGRADATION,
    scale: options.DatasetScale = 4,
    restorer: RestorerName = "nano",
    vary_sharpness: Vary = 0.0,
    reward: RewardOrNone = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    metrics: Metrics = DEFAULT_METRICS,
    border_px: BorderPx = None,
    channel: Channel = None,
    headline: Headline = None,
    n: Annotated[int, typer.Option("--n", "--m", min=1, help="Candidates per image.")] = 8,
    seed: options.Seed = 0,
    against: Against = None,
    limit: options.Limit = None,
    lpips_weights: Annotated[Path | None, typer.Option(help="Local file with the LPIPS backbone.")] = None,
    keep_images: Annotated[bool, typer.Option(help="Keep the candidates in OUT.")] = False,
    as_json: options.ResultJson = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Measure the candidates of a restorer, and the choice of a reward among them."""
    from restoration.evaluation.evaluate import Evaluation, with_conventions
    from restoration.evaluation.evaluate import evaluate as run
    from restoration.evaluation.report import compare
    from restoration.metrics.registry import METRICS, as_reward

    require_folder(out)  # before the work
    names = [name.strip() for name in metrics.split(",")]
    _refuse_idle_metric_options({*names, reward}, border_px, channel, lpips_weights, as_is=as_is)
    images = _dataset(dataset, root, hr, as_is, degradation, scale, seed)
    images = images if limit is None else images.take(limit)
    other = None if against is None else Evaluation.load(against)  # a wrong folder is told before the work
    metric_options: dict[str, dict[str, Any]] = {} if lpips_weights is None else {"lpips": {"weights": lpips_weights}}
    given = {key: value for key, value in (("border_px", border_px), ("channel", channel)) if value is not None}
    metric_options |= {name: dict(given) for name in ("psnr_y", "ssim_y") if given}

    def watch(records: Iterable[Any], total: int) -> Iterable[Any]:
        return progress(records, total, "evaluating", streaming=False)

    rated_with = with_conventions(images, [reward] if reward in METRICS else [], metric_options)
    chooser: Reward | None = None
    if reward == "none" or reward in METRICS:
        refuse_model_options(reward, model=model, mode=mode, dtype=dtype, adapter=adapter, protocol=protocol)
    if reward in METRICS:
        chooser = as_reward(reward, **rated_with.get(reward, {}))
    elif reward != "none":
        chooser = load_reward(
            reward, model=model, mode=mode, device=device, dtype=dtype, adapter=adapter, protocol=protocol
        )
    evaluation = run(
        _restorer(restorer, images.scale, device, vary_sharpness), images, names, n=n,
        seed=seed, reward=chooser, out=out, headline=headline, options=metric_options,
        keep_images=keep_images, watch=watch,
    )  # fmt: skip
    results = evaluation.report()
    if other is not None:
        sides = (evaluation.settings, evaluation.records), (other.settings, other.records)
        results["against"] = compare(*sides, results["headline"])
    if as_json:
        output.json_line(results)
    else:
        show(results)
    print(f"results: {out / 'results.json'}", file=sys.stderr)
    return 2 if results["problems"]["failed"] or results["problems"]["unmeasured"] else 0


def show(results: dict[str, Any]) -> None:
    """Print the results as tables for people."""
    console, settings = output.console(), results["settings"]
    columns = list(results["rows"]["mean"])
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left",
                  title=f"{settings['restorer']['name']} on {settings['dataset']['name']}: {results['images']} images, "
                  f"{results['n']} candidates each")  # fmt: skip
    table.add_column("")
    for name in columns:
        table.add_column(f"{name}*" if name == results["headline"] else name, justify="right")
    for row in (name for name in ROWS if name in results["rows"]):
        table.add_row(row, *(_cell(results["rows"][row][name]) for name in columns))
    table.add_row("G-STD", *(_cell(results["g_std"][name]) for name in columns))
    console.print(table)
    if results["choice"]:
        console.print(_choice_table(results))
    if "against" in results:
        for row in ("mean", "selected"):
            if row in results["against"]:
                _show_test(console, results["against"], row)
    cost = results["cost"]
    if cost["seconds_per_candidate"] is not None:
        peak = "" if cost["peak_bytes"] is None else f", peak memory {cost['peak_bytes'] / 2**30:.2f} GiB"
        console.print(
            f"{cost['seconds_per_candidate']:.2f} s per candidate{peak}; * marks the judging metric", markup=False
        )
    _show_problems(results)


def _choice_table(results: dict[str, Any]) -> Table:
    reward = results["settings"]["reward"]["name"]
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"choice by {reward}", title_justify="left")
    for title in ("under", "captured gain", "regret", "within-LR SRCC", ""):
        table.add_column(title, justify="left" if title in ("under", "") else "right")
    for name, choice in results["choice"].items():
        cells = [_cell(choice[key]) for key in ("captured_gain", "regret", "within_srcc")]
        table.add_row(name, *cells, "" if choice["may_judge"] else f"no judge: {_why(results, name)}")
    return table


def _show_test(console: Any, test: dict[str, Any], row: str) -> None:
    from zoomiqa_reward.runs.paired import LEAST_DIFFERENT

    comparison = test[row]
    p = [
        output.number(float("nan") if comparison[key] is None else comparison[key], 4)
        for key in ("p_sign_flip", "p_wilcoxon")
    ]
    names = " - ".join(test["restorers"])
    interval = ""
    if comparison["difference"]["low"] is None:
        interval = f" (no interval, because fewer than {LEAST_DIFFERENT} images differ)"
    console.print(f"{names}, {row}, {test['metric']} (higher is better): {_cell(comparison['difference'])}"
                  f"{interval}, p {p[0]} (sign flips), {p[1]} (Wilcoxon)", markup=False)  # fmt: skip


def _show_problems(results: dict[str, Any]) -> None:
    problems = results["problems"]
    if results["is_pool_fair"] is False:
        gap = -results["pool_above_bicubic_db"]
        print(f"the pool's mean PSNR-Y is {gap:.2f} dB below bicubic's: choosing is easy here", file=sys.stderr)
    for note in results["settings"]["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for problem in problems["failed"]:
        seed = "" if problem["seed"] is None else f", seed {problem['seed']}"
        print(f"failed: {problem['image']}{seed}: {problem['error']}", file=sys.stderr)
    for name, reasons in problems["unmeasured"].items():
        for why, count in reasons.items():
            print(f"not measured, {count} times: {name}: {why}", file=sys.stderr)
    for name, images in problems["left_out"].items():
        print(f"left out of {name}: {', '.join(images)}", file=sys.stderr)
    if problems["identical_candidates"]:
        print(f"all candidates identical: {', '.join(problems['identical_candidates'])}", file=sys.stderr)


def _dataset(
    name: str, root: Path | None, hr: Path | None, as_is: bool, degradation: str, scale: int, seed: int
) -> Any:
    from restoration.evaluation.datasets import PRESETS, degraded_folder, load_preset, paired_folders

    if as_is and (hr or root):
        raise ValueError("--as-is goes with neither --hr nor --root")
    if (hr is not None or as_is) and degradation != DEGRADATION:
        raise ValueError(f"--degradation {degradation}: with --hr or --as-is nothing is degraded; leave it out")
    if hr is not None or as_is:
        return paired_folders(name, hr, scale=scale)
    if root is None and name in PRESETS and not Path(name).is_dir():
        raise ValueError(f"dataset {name!r} needs --root, the folder that holds it")
    if root is not None:
        return load_preset(name, root, degradation, scale=scale, seed=seed)
    return degraded_folder(name, degradation, scale=scale, seed=seed)


def _refuse_idle_metric_options(
    names: set[str], border_px: int | None, channel: str | None, lpips_weights: Path | None, *, as_is: bool
) -> None:
    """Raise ValueError for an option of metrics that are not measured."""
    for option, value, metrics in (
        ("--border-px", border_px, ("psnr_y", "ssim_y")), ("--channel", channel, ("psnr_y", "ssim_y")),
        ("--lpips-weights", lpips_weights, ("lpips",)),
    ):  # fmt: skip
        if value is not None and as_is:
            raise ValueError(f"{option}: {' and '.join(metrics)} need a ground truth, which --as-is says is not there")
        if value is not None and not names & set(metrics):
            raise ValueError(
                f"{option} is for {' and '.join(metrics)}; name one of them with --metrics, or leave it out"
            )


def _restorer(name: str, scale: int, device: str | None, vary_sharpness: float) -> Any:
    if name == "bicubic":
        if vary_sharpness:
            raise ValueError("--vary-sharpness is for restorers; 'bicubic' is the plain reference")
        from restoration.evaluation.evaluate import BicubicRestorer

        return BicubicRestorer(scale=scale)
    from restoration.restorer.restorer import Restorer

    return Restorer.from_pretrained(name, scale=scale, device=device, vary_sharpness=vary_sharpness)


def _why(results: dict[str, Any], name: str) -> str:
    return results["settings"]["not_headline"][name]


def _cell(number: dict[str, Any]) -> str:
    if number["value"] is None:
        return "-"
    text = f"{number['value']:.3f}"
    return text if number["low"] is None else f"{text} [{number['low']:.3f}, {number['high']:.3f}]"
