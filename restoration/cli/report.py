"""`zoomiqa report`: one HTML file of a run's folder."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zoomiqa_reward.cli import inputs

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of best-of-n, evaluate or tune.", show_default=False)]
Out = Annotated[Path, typer.Option(help="HTML file.")]
Most = Annotated[int, typer.Option("--images", min=1, help="Most images that are shown.")]


def report(run: Run, out: Out = Path("report.html"), images: Most = 24, overwrite: inputs.Overwrite = False) -> int:
    """Write a report of a run: images to zoom into, numbers and charts, in one file without a network."""
    from zoomiqa_reward.runs.outputs import OutputError, claim_file, write_text

    if out.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{out}: a report is HTML; end the name in .html")
    claim_file(out, overwrite=overwrite)
    write_text(out, report_of(run, images), overwrite=overwrite)
    print(f"report: {out} ({out.stat().st_size / 2**20:.1f} MiB)", file=sys.stderr)
    return 0


def report_of(run: Path, most: int = 24) -> str:
    """Return the page of a run's folder. Raises ValueError for a folder of another kind, or without results."""
    from restoration.report.evaluation import evaluation_report
    from restoration.report.selection import folder_report, selection_report
    from restoration.report.tuning import tuning_report

    kept = _settings(run)
    if "folder" in kept:
        return folder_report(run, most)
    settings = kept.get("settings", {})
    if "assessor" in settings or settings.get("search") == "fusion":
        raise ValueError(f"{run}: holds a run of refine or of search --by fusion; give {run / 'start'}, its candidates")
    if "sources" in settings:
        return selection_report(run, most)
    if {"restorer", "dataset", "metrics"} <= set(kept):
        return evaluation_report(run, most)
    if "examples" in settings:
        return tuning_report(run, most)
    raise ValueError(f"{run}: holds a run of another command; give the folder of best-of-n, evaluate or tune")


def _settings(run: Path) -> dict[str, Any]:
    file = run / "run.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{run}: no readable run.json ({error}); give the folder (--out) of best-of-n, evaluate or tune"
        ) from error
    if not isinstance(kept, dict):
        raise ValueError(f"{file}: is no record of a run; give the folder of best-of-n, evaluate or tune")
    return kept
