"""The run: which images are left, several of them at a time, and the rows and report at the end.

A folder holds `calls.jsonl` (every answer of an endpoint), `outcomes.jsonl` (a line per image that is done), and, made
from these, `conversations.jsonl` with `images/` for `python -m train_iqa.sft`, and `report.json`. A kill at any moment
loses at most the answers that are under way.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train_iqa.curation.config import AUTO, CurateConfig
from train_iqa.curation.curator import Curator
from train_iqa.curation.endpoint import Asker, Calls, EndpointError, FatalEndpointError
from train_iqa.curation.judges import ModelJudge, RulesJudge
from train_iqa.curation.report import build_report, write_rows
from train_iqa.curation.thresholds import HintThresholds, shipped
from train_iqa.data import IqaDataset, LabelledImage, load_datasets, select
from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.protocol import Protocol
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, plain, read_lines, write_json
from zoomiqa_reward.runs.progress import counting, say

_FREE = frozenset({"base_url", "key_variable", "max_retries", "timeout_s", "price_in", "price_out"})
"""Of an endpoint: may change when a run goes on; the others decide what it answers."""


def curate(config: CurateConfig) -> dict[str, Any]:
    """Do what is left of a run and return its report; `failed` in it counts the images that an endpoint failed.

    Raises DatasetProblems before anything is asked; ValueError where the folder holds a run with other settings or is
    in use; FatalEndpointError where no call can succeed or too many images failed in a row (rows and report are written
    first).
    """
    datasets = load_datasets(config.sources, checks=config.checks, accept=config.accept)
    images = [image for dataset in datasets for image in _select_images(dataset, config)]
    thresholds = shipped() if config.thresholds is None else HintThresholds.load(config.thresholds)
    protocol = None if config.protocol is None else Protocol.load(config.protocol)
    with locked(config.out):
        _keep_settings(config, datasets, thresholds, protocol)
        return _go_on(config, images, thresholds, protocol)


def _go_on(
    config: CurateConfig, images: Sequence[LabelledImage], thresholds: HintThresholds, protocol: Protocol | None
) -> dict[str, Any]:
    calls, file = Calls(config.out / "calls.jsonl"), config.out / "outcomes.jsonl"
    outcomes = {(row["dataset"], row["id"]): row for row in read_lines(file)}
    todo = [image for image in images if (image.dataset, image.id) not in outcomes]
    if len(todo) < len(images):
        say(f"{config.out}: {len(images) - len(todo)} images are done, {len(todo)} to do")
    run = _Run(config, file, outcomes)
    began = time.monotonic()
    try:
        asyncio.run(run.all(todo, calls, thresholds, protocol))
    finally:
        chosen = {(image.dataset, image.id): image for image in images}
        kept = [outcomes[key] for key in chosen if key in outcomes]
        write_rows(config.out, kept, chosen)
        report = build_report(config, kept, calls.rows, run.failures, thresholds, time.monotonic() - began, len(images))
        write_json(config.out / "report.json", plain(report))
    return report


class _Run:
    """The images in work."""

    def __init__(self, config: CurateConfig, file: Path, outcomes: dict[tuple[str, str], dict[str, Any]]) -> None:
        self.config, self.file, self.outcomes = config, file, outcomes
        self.failures: list[dict[str, str]] = []
        self._in_a_row = 0

    async def all(
        self, todo: Sequence[LabelledImage], calls: Calls, thresholds: HintThresholds, protocol: Protocol | None
    ) -> None:
        config = self.config
        askers = [Asker(config.teacher, "teacher", calls)]
        judge: Any = RulesJudge(thresholds=thresholds)
        if config.judge is not None:
            askers.append(Asker(config.judge, "judge", calls))
            judge = ModelJudge(askers[1], config.prompts, thresholds=thresholds, seed=config.seed)
        curator = Curator(config=config, teacher=askers[0], judge=judge, protocol=protocol)
        try:
            with counting("images", len(todo)) as count:
                queue = iter(todo)
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(config.concurrency, len(todo))):
                        group.create_task(self._work(queue, curator, count))
        except BaseExceptionGroup as group_error:  # the first says what happened; the others are its consequences
            raise group_error.exceptions[0] from None
        finally:
            for asker in askers:
                await asker.close()

    async def _work(self, queue: Iterator[LabelledImage], curator: Curator, count: Callable[[int], None]) -> None:
        for image in queue:
            try:
                outcome = await curator.curate(image)
            except FatalEndpointError:
                raise
            except (EndpointError, ImageError, ValueError) as error:
                self._fail(image, error)
            else:
                append_line(self.file, plain(outcome))
                self.outcomes[image.dataset, image.id] = outcome
                self._in_a_row = 0
            count(1)

    def _fail(self, image: LabelledImage, error: Exception) -> None:
        self.failures.append({"dataset": image.dataset, "id": image.id, "error": str(error)})
        say(f"{image.dataset}/{image.id}: {error}")
        self._in_a_row += 1
        if self._in_a_row >= self.config.max_failures:
            raise FatalEndpointError(
                f"{self._in_a_row} images failed in a row, the last with: {error}. Nothing is lost: the same command "
                "goes on when the cause is removed"
            )


def _select_images(dataset: IqaDataset, config: CurateConfig) -> Sequence[LabelledImage]:
    part = config.part
    if part == AUTO:  # never the test part of a set whose authors divided it
        part = "training" if dataset.has_official_split else "all"
        if not dataset.has_official_split:
            say(f"{dataset.name}: no official split, so all images are used; --part training leaves some for a test")
    return select(dataset, part)[: config.limit]


def _keep_settings(
    config: CurateConfig, datasets: Sequence[IqaDataset], thresholds: HintThresholds, protocol: Protocol | None
) -> None:
    """Write all that decides what an outcome is, so that a run is not continued with something else."""
    given = asdict(config)
    settings = {
        name: given[name]
        for name in (
            "attempts",
            "rounds",
            "rating_tolerance",
            "consistency",
            "reliance",
            "max_pixels",
            "seed",
            "prompts",
        )
    }
    for role in ("teacher", "judge"):
        endpoint = given[role]
        settings[role] = endpoint and {name: value for name, value in endpoint.items() if name not in _FREE}
    settings["thresholds"] = digest(repr(sorted(thresholds.of.items())))
    settings["protocol"] = None if protocol is None else protocol.fingerprint
    settings["data"] = {dataset.name: _digest(dataset) for dataset in datasets}
    bind(config.out, plain(settings), file="settings.json")


def _digest(dataset: IqaDataset) -> str:
    """Return what tells other labels; contents are in the requests' hashes, and `checks` may change on the way."""
    lines = sorted(f"{image.id}\t{image.mos!r}\t{image.split}" for image in dataset.images)
    return digest("\n".join(lines))
