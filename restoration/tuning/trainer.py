"""`tune`: run a recipe on images with a reward and a monitor. The folder loads as a `Restorer`.

    run.json              settings; a run with others refuses the folder
    state.pt, log.jsonl   the state to continue from; one row per round
    monitor_limits.json   limits of the base model, written before the first update
    monitor.jsonl, looks/, reward_vs_held_out.png, strip.png    the looks of the monitor
    lora/                 the adapter, as diffusers' `load_lora_weights` reads it
    pipeline/             the whole pipeline with the adapter fused, float32: `TuneResult.restorer` loads it
    result.json           rounds, best round, alarms, seconds, and how to call the tuned pipeline

One process or many (`accelerate launch`): each draws and scores its own images; `updates.py` sums the gradients.
Every random number follows from the seed and the round, so a run that is killed and restarted gives the same curve.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restoration.restorer.loading import Pipeline, is_pipeline, load_pipeline
from restoration.restorer.network_state import switches_of
from restoration.tuning.algorithms.groups import NothingLearned
from restoration.tuning.config import Recipe
from restoration.tuning.context import Algorithm, Tuning
from restoration.tuning.data import Example
from restoration.tuning.denoisers.base import (
    Denoiser,
    denoiser_of,
    freeze,
    require_denoiser,
    restorer_options_of,
)
from restoration.tuning.lora import POLICY, AdapterState, add_lora, layers_to_tune, merge_adapter, save_lora
from restoration.tuning.monitor.figures import draw_strip, plot_reward, save_look
from restoration.tuning.monitor.monitor import Monitor, Reading
from restoration.tuning.offload import Offloader
from restoration.tuning.progress import (
    Progress,
    agree,
    finite,
    gather,
    merged,
    processes,
)
from restoration.tuning.requirements import (
    require_gradients,
    require_inputs,
    require_others,
    require_scale,
    require_truths,
    warn_unsaved,
)
from restoration.tuning.sampler.transitions import random_steps
from restoration.tuning.updates import Updates
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.numerics import callers_precision
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.normalise import group_keys
from zoomiqa_reward.runs.digest import digest, file_digest
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, read_lines, trim_lines, write_json
from zoomiqa_reward.runs.outputs import part_folder
from zoomiqa_reward.runs.progress import counting
from zoomiqa_reward.runs.settings import identity_of
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans
from zoomiqa_reward.runs.weights_digest import weights_digest

if TYPE_CHECKING:
    from restoration.restorer.restorer import Restorer


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """Result of a run: its files, and how it ended."""

    folder: Path
    pipeline: Path
    """The whole tuned pipeline with the adapter merged."""
    lora: Path
    """The adapter alone."""
    rounds: int
    """Finished rounds, including one with an alarm."""
    best_round: int
    """The round whose weights are the result; 0: the base model, because no round was better."""
    alarms: tuple[str, ...]
    """Why the monitor stopped the run; empty if it did not."""
    seconds: float
    """Time of drawing, scoring and updating, over all sessions, without the looks of the monitor."""
    restorer_options: dict[str, float | str] = field(default_factory=dict)
    """Options of `Restorer.from_pretrained` with which the pipeline restores as it was tuned and monitored: steps, eta,
    and what its denoiser was given, such as guidance_scale. Also in `result.json`, as `restorer`."""
    pipeline_class: type | None = None
    """The class of a pipeline of your own (`tune(denoiser=)`), whose `from_pretrained` reads `pipeline`."""

    def restorer(self, **options: Any) -> "Restorer":
        """Return the tuned pipeline as a `Restorer` that restores as it was tuned.

        options: as in `Restorer.from_pretrained`; they replace `restorer_options`.
        """
        from restoration.restorer.restorer import Restorer

        given: dict[str, Any] = {**self.restorer_options, **options}
        if self.pipeline_class is None:
            return Restorer.from_pretrained(self.pipeline, **given)
        pipeline_class: Any = self.pipeline_class  # it has diffusers' own methods
        given["device"] = find_device(given.get("device"))
        return Restorer.from_pretrained(pipeline_class.from_pretrained(self.pipeline), **given)


@torch.inference_mode(False)
@torch.enable_grad()
@callers_precision()
def tune(
    recipe: Recipe, examples: Sequence[Example], reward: Reward, out: str | os.PathLike[str], *,
    validation: Sequence[Example] | None, pipeline: Pipeline | None = None, denoiser: Denoiser | None = None,
    device: str | torch.device | None = None, on_round: Callable[[dict[str, float]], object] | None = None,
) -> TuneResult:  # fmt: skip
    """Run the recipe, or continue the run in `out`, and return the result.

    examples: images to learn from; see `load_examples`. validation: at least 4 other images, for the monitor; None: no
    monitor, and the last weights are the result. reward: any `Reward`. pipeline: a diffusers pipeline instead of the
    recipe's source; LoRA adapters are added to its denoiser and stay there. denoiser: a pipeline of your own, taken
    apart as `denoisers.base.Denoiser` says, instead of one of the known classes. on_round: is called after each round
    with its row of `log.jsonl`, in the main process; for wandb or tensorboard.

    The same call continues an interrupted run, and one with more rounds a finished one.
    With a monitor, an alarm stops the run, and the result is the look with the highest reward before it. With
    `MonitorConfig(stop=False)` the result is the last round.
    Autocast, no_grad, default dtype and default device of the caller change nothing. What is refused before the first
    round leaves no run in `out`.
    Raises ValueError for settings that do not fit and for a folder of another run; TooManyFailures; NothingLearned
    where the whole run made no update; ImageError.
    """
    if device is not None:
        find_device(device)
    state = processes(device)
    here = state.device if device is None or state.num_processes > 1 else find_device(device)
    if recipe.config.images_per_round % state.num_processes:
        raise ValueError(
            f"images_per_round={recipe.config.images_per_round}: must be a multiple of the {state.num_processes} "
            "processes, or a round would have fewer images than it says"
        )
    source = _source_of(recipe, pipeline, denoiser)
    pipeline_class = None if denoiser is None else type(source)
    source.to(here)
    mine = list(examples)[state.process_index :: state.num_processes]
    if not mine:
        raise ValueError(f"{len(examples)} images for {state.num_processes} processes: each needs at least one")
    require_truths(recipe.config.truth_weight, mine)
    require_inputs(reward, [*mine, *(validation or ())])
    require_others(examples, validation or ())
    folder = Path(out)
    denoiser = denoiser_of(source, **recipe.denoiser_options) if denoiser is None else denoiser
    require_gradients(denoiser.module)
    restorer_options = restorer_options_of(denoiser, recipe.config)
    require_scale([*mine, *(validation or ())], denoiser.scale)
    layers_to_tune(denoiser, recipe.config.lora_targets)
    warn_unsaved(source)
    half = recipe.config.mixed_precision == "bf16"
    tuning = Tuning(
        denoiser=denoiser, reward=reward, examples=mine, config=recipe.config, folder=folder, device=here,
        share=Offloader(source, reward, here, enabled=recipe.config.offload),
        # Off, too, whatever is on outside.
        autocast=lambda: torch.autocast(here.type, torch.bfloat16, enabled=half),
        process=state.process_index, num_processes=state.num_processes,
    )  # fmt: skip
    monitor = None if validation is None else Monitor(tuning, validation, recipe.monitor)
    random_steps(tuning.path, recipe.config.eta)  # ValueError for an eta that a step has no room for
    recipe.algorithm.prepare(tuning)
    with locked(folder, is_holder=state.is_main_process):
        if state.is_main_process:
            settings = _settings(recipe, source, denoiser.module, reward, examples, validation, state.num_processes)
            _bind(folder, settings)
        state.wait_for_everyone()
        add_lora(denoiser, recipe.config.lora_rank, recipe.config.lora_alpha, recipe.algorithm.adapters,
                 recipe.config.seed, recipe.config.lora_targets)  # fmt: skip
        if recipe.config.gradient_checkpointing:
            network: Any = denoiser.module  # its method is diffusers' own
            network.enable_gradient_checkpointing()
        run = _Run(recipe, tuning, monitor, is_main=state.is_main_process, on_round=on_round)
        result = run.go(restorer_options)
    return replace(result, pipeline_class=pipeline_class)


def _source_of(recipe: Recipe, pipeline: Pipeline | None, denoiser: Denoiser | None) -> Any:
    """Return the pipeline to tune; frozen where it comes with a denoiser. Raises ValueError for what is none."""
    if denoiser is None:
        source = load_pipeline(recipe.source) if pipeline is None else pipeline
    elif pipeline is not None or recipe.denoiser_options:
        raise ValueError("denoiser= brings its pipeline and its options: leave pipeline= and denoiser_options out")
    else:
        require_denoiser(denoiser)
        source = denoiser.pipeline
    if not is_pipeline(source):
        raise ValueError(f"pipeline={type(source).__name__}: must be a diffusers pipeline")
    if denoiser is not None:
        freeze(source)
    return source


def _bind(folder: Path, settings: dict[str, Any]) -> None:
    """Claim the folder for a run with these settings; the same run with more rounds continues it."""
    file, rounds = folder / "run.json", settings["config"]["rounds"]
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    record = stored.get("settings") if isinstance(stored, dict) else None
    before = record["config"]["rounds"] if isinstance(record, dict) and "config" in record else rounds
    compared = settings | {"config": settings["config"] | {"rounds": min(before, rounds)}}
    bind(folder, compared, key="settings", facts=lambda: {"finished": False})
    if rounds > before:
        write_json(file, stored | {"settings": settings, "finished": False})


class _Run:
    """One session of a run."""

    def __init__(
        self, recipe: Recipe, tuning: Tuning, monitor: Monitor | None, *, is_main: bool,
        on_round: Callable[[dict[str, float]], object] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.tuning, self.monitor, self.is_main = recipe, tuning, monitor, is_main
        self.on_round = on_round
        self.algorithm: Algorithm = recipe.algorithm
        module = tuning.denoiser.module
        self.policy = AdapterState(module, POLICY)
        self.updates = Updates(tuning)
        self.ema = self.updates.ema
        self.progress = Progress(self.policy.state_dict())
        self.running = RunningMeans()
        self.run = RunFolder(tuning.folder)
        others = {name: AdapterState(module, name) for name in self.algorithm.adapters[1:]}
        self.parts: dict[str, Any] = {
            "policy": self.policy, **others, "optimizer": self.updates.optimizer, "ema": self.ema,
            "progress": self.progress, "running": self.running,
        }  # fmt: skip

    def go(self, restorer_options: dict[str, float | str]) -> TuneResult:
        """Run what is missing. restorer_options: see `TuneResult`."""
        done = self.run.load(self.parts)
        if self.is_main:
            for name in ("log.jsonl", "monitor.jsonl"):
                trim_lines(self.tuning.folder / name, "round", done or -1)
        if self.monitor is not None and self.is_main:
            base = self.monitor.start()
            if done == 0:
                self._record(0, base)
                if (announcement := self.monitor.announcement()) is not None:
                    append_line(self.tuning.folder / "log.jsonl", {"round": 0, "note": announcement})
        if done == 0 and self.monitor is not None:
            self.progress.best_reward = agree(base.values["reward"] if self.is_main else None)
        total = self.recipe.config.rounds
        begin = getattr(self.algorithm, "begin", None)
        if begin is not None and done < total and not self.progress.stopped:
            begin(self.tuning)
        with counting(f"{self.recipe.name}, rounds", total, initial=done, shown=self.tuning.process == 0) as count:
            while done < total and not self.progress.stopped:
                done = self._round(done)
                count(1)
        return self._finish(done, restorer_options)

    def _round(self, number: int) -> int:
        began = time.monotonic()
        collected = self.algorithm.collect(self.tuning, number)
        losses, count = self.updates.take(collected, number)
        report = merged(gather(collected.report)) | losses
        self.progress.updates += count
        self.algorithm.after_round(self.tuning, self.progress.updates)
        self.progress.seconds += time.monotonic() - began
        done, config = number + 1, self.recipe.config
        self.running.update({"score_mean": report["score"]} if "score" in report else {})
        if self.monitor is not None and (done % self.recipe.monitor.every == 0 or done == config.rounds):
            self._look(done)
        if self.is_main:
            row = {"round": done} | finite(report) | self.running.means
            self.run.log(row)
            if self.on_round is not None:
                self.on_round(row)
            if done % config.save_every == 0 or done == config.rounds or self.progress.stopped:
                self.run.save(done, self.parts)
        return done

    def _look(self, done: int) -> None:
        assert self.monitor is not None
        with self.ema.applied():
            seen = self.monitor.look() if self.is_main else None
            if self.is_main:
                assert seen is not None
                self._record(done, seen)
            reward, alarms = agree((seen.values["reward"], list(seen.alarms)) if seen is not None else None)
            if not alarms:
                self.progress.offer(done, reward, self.policy.state_dict())
        if alarms and self.progress.alarm_round == 0:
            self.progress.alarm_round = done
        if alarms and self.recipe.monitor.stop:
            self.progress.alarms = alarms

    def _record(self, done: int, seen: Reading) -> None:
        folder = self.tuning.folder
        row = {"round": done, "alarms": len(seen.alarms), **finite(seen.values)}
        append_line(folder / "monitor.jsonl", row | ({"why": list(seen.alarms)} if seen.alarms else {}))
        save_look(seen.images, folder / "looks", done)
        held_out = next(iter(self.recipe.monitor.metrics), "lr_consistency")
        plot_reward(read_lines(folder / "monitor.jsonl"), held_out, folder / "reward_vs_held_out.png")
        draw_strip(folder / "looks", folder / "strip.png")

    def _finish(self, done: int, restorer_options: dict[str, float | str]) -> TuneResult:
        """Put the result's weights on the adapter and write them. Raises NothingLearned where there are none."""
        if self.progress.updates == 0:
            raise NothingLearned(
                f"{self.tuning.folder}: {done} rounds and no update, so the model is its base: in every round all "
                "groups were tied or saturated, or could not be scored, as log.jsonl tells; take a reward that tells "
                "candidates apart, more num_samples, or vary_sharpness above 0"
            )
        best = self.monitor is not None and (self.recipe.monitor.stop or self.progress.stopped)
        if best:
            self.policy.load_state_dict(self.progress.best)
        else:
            self.ema._set(self.ema.averages)
        folder = self.tuning.folder
        result = TuneResult(
            folder=folder, pipeline=folder / "pipeline", lora=folder / "lora", rounds=done,
            best_round=self.progress.best_round if best else done, alarms=tuple(self.progress.alarms),
            seconds=self.progress.seconds, restorer_options=restorer_options,
        )  # fmt: skip
        if self.is_main:
            save_lora(self.tuning.denoiser, result.lora)
            _save_pipeline(self.tuning, result.pipeline)
            looks = [] if self.monitor is None else read_lines(folder / "monitor.jsonl")
            reward = next((look.get("reward") for look in looks if look["round"] == result.best_round), None)
            write_json(folder / "result.json", {
                "rounds": done, "best_round": result.best_round, "updates": self.progress.updates,
                "best_reward": reward, "alarms": list(result.alarms),
                "signals_without_limit": [] if self.monitor is None else list(self.monitor.left_out),
                "first_alarm_round": self.progress.alarm_round or None, "seconds": round(result.seconds, 3),
                "restorer": restorer_options,
            })  # fmt: skip
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            write_json(folder / "run.json", record | {"finished": True})
        agree(None)  # nobody reads the folder before it is written
        return result


def _save_pipeline(tuning: Tuning, folder: Path) -> None:
    """Write the pipeline with the adapter fused; the one in memory keeps its adapters."""
    denoiser = tuning.denoiser
    try:
        denoiser.pipeline.register_modules(**{denoiser.module_name: merge_adapter(denoiser.module)})
        denoiser.pipeline.save_pretrained(part_folder(folder), safe_serialization=True)
    finally:
        denoiser.pipeline.register_modules(**{denoiser.module_name: denoiser.module})


def _settings(
    recipe: Recipe, pipeline: Any, module: torch.nn.Module, reward: Reward, examples: Sequence[Example],
    validation: Sequence[Example] | None, num_processes: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Return what a run is made of: another one must not continue in its folder."""

    def digests(images: Sequence[Example]) -> list[str]:
        with_truth: list[Tensor] = [image.lq if image.hr is None else image.hr for image in images]
        lows = group_keys([image.lq for image in images], [image.prompt for image in images])
        return [f"{low}/{high}" for low, high in zip(lows, group_keys(with_truth), strict=True)]

    return recipe.settings() | {
        "weights": _state_of(module), "reward": identity_of(reward),
        "beside": {name: _state_of(component) for name, component in pipeline.components.items()
                   if component is not module},
        "pairs": None if (pairs := getattr(recipe.algorithm, "pairs_file", None)) is None else file_digest(pairs),
        "examples": digests(examples), "validation": None if validation is None else digests(validation),
    } | ({"processes": num_processes} if num_processes > 1 else {})  # fmt: skip


def _state_of(component: Any) -> Any:
    """Return what tells another autoencoder, text model or scheduler of a pipeline from this one."""
    if isinstance(component, torch.nn.Module):
        switches = switches_of(component)
        return weights_digest(component) if not switches else [weights_digest(component), switches]
    config = getattr(component, "config", None)
    if config is None:
        return type(component).__name__
    shown = {name: value for name, value in dict(config).items() if not name.startswith("_")}  # no path, no version
    return digest(type(component).__name__, repr(sorted(shown.items())))
