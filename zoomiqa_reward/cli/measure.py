"""`zoomiqa score`, `assess` and `rank`: how good is each image, why, and which is best.

What needs torch is imported when a command runs, so that `--help` and wrong options answer at once.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomiqa_reward.cli import clips, inputs, output
from zoomiqa_reward.runs.progress import progress

if TYPE_CHECKING:
    from zoomiqa_reward.cli.ranking_output import Placed
    from zoomiqa_reward.model.measuring import Measured, RatedImage
    from zoomiqa_reward.model.ratings import Assessment
    from zoomiqa_reward.model.turns import Turn


def score(
    images: inputs.Images,
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    as_json: inputs.Json = False,
    out: inputs.TableFile = None,
    recursive: inputs.Recursive = False,
    shared: inputs.Shared = False,
    ray: inputs.RayWorkers = 0,
    overwrite: inputs.Overwrite = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    strict: inputs.Strict = True,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
    every: clips.Every = None,
    keep_up: clips.KeepUp = False,
) -> int:
    """Rate each image or clip from 1 (bad) to 5 (excellent), with a standard deviation; a folder into a table."""
    from zoomiqa_reward.cli.score_table import COLUMNS
    from zoomiqa_reward.model.measuring import measure
    from zoomiqa_reward.runs.tables import claim_table

    files = inputs.expand(images, recursive=recursive)
    if clips.are_clips(files, every, keep_up, out=out, shared=shared, ray=ray):
        iqa = inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
        return _score_clips(
            iqa, files, as_json=as_json, mode=mode, question=question, every_s=every, keep_up=keep_up
        )  # fmt: skip
    rank, launched = inputs.launched_processes()
    shared = shared or launched > 1
    if out is not None:
        files = inputs.once_each(files)  # a row per image
        claim_table(out, columns=COLUMNS, inputs=files, overwrite=overwrite)
    if out is None and (shared or ray):
        raise ValueError("several processes share their work through the table; name it with --out")
    if out is not None and ray:
        records = _score_on_cluster(
            files, out, overwrite, device, ray,
            {"model": model, "dtype": dtype, "adapter": adapter, "protocol": protocol},
            {"mode": mode, "strict": strict, "question": question},
        )  # fmt: skip
        return _shown(records, as_json=as_json)
    device = inputs.own_device(device, rank) if launched > 1 else device
    iqa = inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
    if out is not None and shared:
        from zoomiqa_reward.cli.score_shared import score_shared

        records, finished = score_shared(
            out, overwrite, iqa, files, rank=rank, mode=mode, strict=strict, question=question
        )
        return _shown(records, as_json=as_json) if finished else output.exit_code(records)
    if out is not None:
        records = _score_into(out, overwrite, iqa, files, as_json=as_json, mode=mode, strict=strict, question=question)
        return output.exit_code(records)
    records = []
    try:
        results = measure(iqa, files, mode=mode, strict=strict, question=question)
        for measured in progress(results, len(files), "rating", streaming=as_json):
            records.append(measured.record)
            if as_json:
                output.json_line(measured.record.as_json())
    finally:  # interrupted: what is measured is still shown
        if not as_json:
            output.table(records)
    return output.exit_code(records)


def _score_on_cluster(
    files: list[str], out: Path, overwrite: bool, device: str | None, workers: int, loaded: dict[str, Any],
    asked: dict[str, Any],
) -> "list[RatedImage]":  # fmt: skip
    """Have Ray's workers fill the table. Raises ValueError without any image."""
    from zoomiqa_reward.cli.score_shared import Job, score_on_cluster

    if not files:
        raise ValueError("the files and folders given hold no image: name images")
    job = Job(
        files=tuple(files), folder=os.getcwd(), out=out, overwrite=overwrite, device=device, loaded=loaded, asked=asked
    )
    return score_on_cluster(job, workers=workers)


def _score_clips(iqa: Any, files: list[str], *, as_json: bool, **asked: Any) -> int:
    """Print a line or a row per clip; return the exit code."""
    records: list[RatedImage] = []
    try:
        for clip in progress(clips.measure_clips(iqa, files, **asked), len(files), "rating clips", streaming=as_json):
            records.append(clip.measured.record)
            if as_json:
                output.json_line(clip.as_json())
    finally:  # interrupted: what is measured is still shown
        if not as_json:
            output.table(records)
    return output.exit_code(records)


def _score_into(
    out: Path, overwrite: bool, iqa: Any, files: list[str], *, as_json: bool, **asked: Any
) -> "list[RatedImage]":
    """Measure what the table lacks, print lines or the summary, and return all records."""
    from zoomiqa_reward.cli import score_table
    from zoomiqa_reward.model.measuring import BATCH

    table = score_table.ScoreTable(out, score_table.fingerprint_of(iqa, **asked), overwrite)
    table.open()
    results = score_table.measure_into(table, iqa, files, chunk=1 if asked["strict"] else BATCH, **asked)

    def show(record: "RatedImage") -> None:
        if as_json:
            output.json_line(record.as_json())

    records = score_table.watch(progress(results, len(files), "rating", streaming=as_json), show)
    if not as_json:
        score_table.show_summary(score_table.summarize(records))
    print(f"{out}: {len(records)} images, {table.kept} of them measured before", file=sys.stderr)
    table.tell_replaced()
    return records


def _shown(records: "list[RatedImage]", *, as_json: bool) -> int:
    """Print the lines or the summary of a table that several processes made; return the exit code."""
    from zoomiqa_reward.cli import score_table

    if as_json:
        for record in records:
            output.json_line(record.as_json())
    else:
        score_table.show_summary(score_table.summarize(records))
    return output.exit_code(records)


def assess(
    images: inputs.Images,
    model: inputs.Model = "nano",
    as_json: inputs.Json = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    strict: inputs.Strict = True,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Describe each image in words: both rounds, the examined region, and the rating."""
    from zoomiqa_reward.model.measuring import measure

    files = inputs.expand(images)
    iqa = inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
    records: list[RatedImage] = []
    results = measure(iqa, files, mode="reason", strict=strict, question=question)
    for measured in progress(results, len(files), "assessing", streaming=True):
        records.append(measured.record)
        if as_json:
            output.json_line(measured.record.as_json() | words(measured.assessment))
        else:
            output.answer(measured)
    return output.exit_code(records)


def rank(
    images: inputs.Images,
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    lq: inputs.InputImage = None,
    reference: inputs.ReferenceImage = None,
    as_json: inputs.Json = False,
    sheet: inputs.SheetFile = None,
    overwrite: inputs.Overwrite = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    strict: inputs.Strict = True,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
    every: clips.Every = None,
    keep_up: clips.KeepUp = False,
) -> int:
    """Order images, or clips, best first. Those that could not be measured come last, with the reason."""
    from zoomiqa_reward.cli import rank_together
    from zoomiqa_reward.cli.ranking_output import explain_placed, order_by_rating, write_sheet
    from zoomiqa_reward.model.measuring import measure
    from zoomiqa_reward.runs.outputs import claim_file

    files = inputs.expand(images)
    has_clips = clips.are_clips(files, every, keep_up, sheet=sheet)
    if sheet is not None:  # before the work; forgotten, `--sheet *.png` names a photograph
        _refuse_inside(sheet, images)
        claim_file(sheet, inputs=[*images, *files, *filter(None, (lq, reference))], overwrite=overwrite, suffixes=True)
    other = rank_together.other_image(lq, reference)
    if other is not None and has_clips:
        raise ValueError("--lq and --reference: only for images; clips are ranked by their ratings alone")
    iqa = inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
    details: dict[str, dict[str, object]] = {}
    if has_clips:
        results = _clips_for_rank(iqa, files, details, mode=mode, question=question, every_s=every, keep_up=keep_up)
    else:
        results = measure(iqa, files, mode=mode, strict=strict, question=question)
    measured: list[Measured] = []
    try:
        for result in progress(results, len(files), "rating", streaming=False):
            measured.append(result)
    finally:  # interrupted: what is measured is still ranked and shown
        if other is None:
            placed, gap = order_by_rating(measured) if measured else ([], math.nan)
            _show_ranking(placed, details, as_json=as_json)
        else:
            judged = rank_together.judge(iqa, measured, *other, mode=mode, question=question)
            placed, gap = rank_together.show(judged, *other, as_json=as_json)
    if math.isfinite(gap):
        print(f"the best is {gap:.3f} above the second", file=sys.stderr)
    if sheet is not None:
        answers = explain_placed(iqa, placed, question)
        explained_ones = list(progress(answers, len(placed), "explaining", streaming=False))
        title = None if other is None else rank_together.title(len(placed), iqa.name, *other)
        write_sheet(explained_ones, sheet, overwrite=overwrite, title=title)
        print(f"contact sheet: {sheet}", file=sys.stderr)
    return 0 if all(placement.rank is not None for placement in placed) else 2


def _show_ranking(placed: "list[Placed]", details: dict[str, dict[str, object]], *, as_json: bool) -> None:
    """Print the places; `details` holds by name what only clips have."""
    records = [placement.measured.record for placement in placed]
    if as_json:
        for placement, record in zip(placed, records, strict=True):
            output.json_line(record.as_json() | details.get(record.image, {}) | {"rank": placement.rank})
    else:
        output.table(records, ["-" if placement.rank is None else str(placement.rank) for placement in placed])


def _refuse_inside(sheet: str, images: Sequence[str]) -> None:
    """Raise OutputError for a sheet in a folder that is ranked: the next call would rank it too."""
    from zoomiqa_reward.runs.outputs import OutputError

    for folder in map(Path, images):
        if folder.is_dir() and Path(sheet).resolve().parent == folder.resolve():
            raise OutputError(f"{sheet}: lies in {folder}, whose images are ranked; name a place outside of it")


def _clips_for_rank(
    iqa: Any, files: list[str], details: dict[str, dict[str, object]], **asked: Any
) -> "Iterator[Measured]":
    """Yield the records of clips; `details` gets what only clips have, by name."""
    for clip in clips.measure_clips(iqa, files, **asked):
        details[clip.measured.record.image] = clips.clip_fields(clip.score)
        yield clip.measured


def words(assessment: "Assessment | None") -> dict[str, Any]:
    """Return what `assess` adds to the JSON of `score`.

    `sections` and `texts` hold one item per round; `bbox` is the region that round 1 named, wider by the
    protocol's `box_margin`, as fractions; `crop_box` the pixels that round 2 looked at.
    """
    turns: tuple[Turn, ...] = assessment.turns if assessment is not None else ()
    return {
        "sections": [dict(turn.sections) for turn in turns],
        "bbox": turns[0].bbox if turns else None,
        "crop_box": turns[1].crop_box if len(turns) > 1 else None,
        "texts": [turn.text for turn in turns],
    }
