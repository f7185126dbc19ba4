"""`zoomiqa tune`: tune a restorer on the quality model, watched for reward hacking; also under `accelerate launch`.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from restoration.cli import options
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardOrRecipes, load_reward

HELD_OUT_SHARE, MOST_HELD_OUT = 4, 16

RecipeArgument = Annotated[
    str, typer.Argument(help="nano_nft, nano_grpo, sdx4_nft, ...; a wrong name prints all names.")
]
Out = Annotated[Path, typer.Option(help="Run folder; the same command continues it.")]
Images = Annotated[Path, typer.Option(help="Folder of good images to degrade and learn from.")]
Lq = Annotated[
    Path | None, typer.Option("--lq", help="Folder of low-quality images; IMAGES then holds their ground truths.")
]
Validation = Annotated[
    Path | None, typer.Option(help="Folder of good images for the monitor; default: a part of IMAGES.")
]
RestorerName = Annotated[
    str | None,
    typer.Option("--restorer", "--source", help="Replaces the pipeline of the recipe: a hub id or a folder."),
]
Pairs = Annotated[Path | None, typer.Option(help="Parquet file of pairs, for dpo recipes.")]


def tune(
    recipe: RecipeArgument,
    images: Images,
    out: Out,
    lq: Lq = None,
    validation: Validation = None,
    degradation: options.Degradation = "realesrgan",
    scale: options.DatasetScale = 4,
    limit: options.Limit = None,
    restorer: RestorerName = None,
    reward: RewardOrRecipes = None,
    model: inputs.Model = "nano",
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
    pairs: Pairs = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Replaces the recipe's rounds.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Replaces the recipe's rate.")] = None,
    seed: options.Seed = 0,
    as_json: options.ResultJson = False,
    device: inputs.Device = None,
) -> int:
    """Tune a restorer on a reward, with a monitor against reward hacking."""
    from restoration.tuning import load_examples
    from restoration.tuning import tune as run
    from restoration.tuning.recipes import find_recipe
    from zoomiqa_reward.runs.outputs import require_folder

    changes: dict[str, Any] = {"rounds": rounds, "learning_rate": learning_rate, "pairs_file": pairs}
    if pairs is not None and not recipe.endswith("_dpo"):
        raise ValueError(f"--pairs goes with the dpo recipes, not with {recipe}")
    chosen = find_recipe(recipe, seed=seed, **{key: value for key, value in changes.items() if value is not None})
    chosen = chosen if restorer is None else replace(chosen, source=restorer)
    require_folder(out)  # before the work
    training, checked = _datasets(images, lq, validation, degradation, scale, seed, limit)
    given: dict[str, Any] = {"device": device, "adapter": adapter, "protocol": protocol}
    if reward is None:
        optimised = chosen.reward(inputs.load_model(model, **given))
    else:
        optimised = load_reward(reward, model=model, **given)
    with contextlib.redirect_stdout(sys.stderr):  # the log's rows are talk
        result = run(chosen, load_examples(training), optimised, out, validation=load_examples(checked), device=device)
    for why in result.alarms:
        print(f"alarm in round {result.rounds}: {why}", file=sys.stderr)
    shown = {
        "recipe": chosen.name, "rounds": result.rounds, "best_round": result.best_round, "alarms": list(result.alarms),
        "seconds": round(result.seconds, 1), "pipeline": str(result.pipeline), "lora": str(result.lora),
        "restorer": result.restorer_options,
    }  # fmt: skip
    if as_json:
        output.json_line(shown)
    else:
        print(f"{result.pipeline}: round {result.best_round} of {result.rounds}, {result.seconds:.0f} s of training")
    return 0


def _datasets(
    images: Path, lq: Path | None, validation: Path | None, degradation: str, scale: int, seed: int, limit: int | None
) -> tuple[Any, Any]:
    """Return the training images and those of the monitor; no image is in both."""
    from restoration.evaluation.datasets import degraded_folder, paired_folders

    whole = degraded_folder(images, degradation, scale=scale, seed=seed) if lq is None else paired_folders(
        lq, images, scale=scale
    )  # fmt: skip
    whole = whole if limit is None else whole.take(limit)
    if validation is not None:
        return whole, degraded_folder(validation, degradation, scale=scale, seed=seed)
    count = min(MOST_HELD_OUT, len(whole.items) // HELD_OUT_SHARE)
    if count < 4:
        raise ValueError(
            f"{len(whole.items)} images: a quarter is held out for the monitor, which needs 4; give 16 images or more, "
            "or --validation"
        )
    # The last ones, so that each image keeps its place, and with it the seed that it is degraded with.
    training = whole.take(len(whole.items) - count)
    held_out = replace(whole, items=whole.items[len(training.items) :], seed=whole.seed + len(training.items))
    return training, held_out
