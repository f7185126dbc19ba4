"""The whole curation against a scripted teacher that tells the truth half of the time. Seconds, and no model endpoint.

    python examples/curate.py [photo.jpg]

For a real teacher leave the server out and give its address: `Endpoint(model=..., base_url=...)`.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from restoration.demo import bundled_photograph
from train_iqa.curation.config import CurateConfig
from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.loop import curate
from train_iqa.data import DatasetSource
from train_iqa.rows.conversations import read_conversations
from train_iqa.rows.turn_rows import build_row, fitting_protocol, row_kinds
from zoomiqa_reward.images import load_image
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import trie_of
from zoomiqa_reward.runs.json_lines import read_lines

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the scripted teacher stands in benchmarks/planted
from benchmarks.planted.cases import make_cases
from benchmarks.planted.endpoint import ScriptedServer
from benchmarks.planted.teacher import scripted_dataset


def main(image: str | Path, model: str = "nano", images: int = 8) -> list[str]:
    """Curate answers about degraded copies of a photograph and build `model`'s training rows; print and return a line
    for each step.
    """
    photograph = load_image(image)[:, :224, :224].permute(1, 2, 0).numpy()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table, teacher = scripted_dataset(root / "data", make_cases([photograph], images))
        with ScriptedServer(teacher) as server:
            config = CurateConfig(
                sources=(DatasetSource(family="csv", root=table),),
                teacher=Endpoint(model="scripted", base_url=server.url, price_in=1.0, price_out=4.0),
                out=root / "run",
            )
            report = curate(config)
        lines = [f"judge: {report['judge']}; kept {report['kept']} of {report['images']} images"]
        lines += refusals(root / "run")
        cost = report["cost"]["teacher"]
        lines.append(f"{cost['calls']} calls, {cost['tokens_in'] + cost['tokens_out']} tokens, {cost['money']} paid")
        checkpoint = load_checkpoint(model, device="cpu")
        talks = list(read_conversations(root / "run" / "conversations.jsonl"))
        checkpoint = replace(checkpoint, protocol=fitting_protocol(checkpoint.protocol, talks))
        trie = trie_of(checkpoint)
        for talk in talks:
            tokens = [build_row(checkpoint, trie, talk, kind).length for kind in row_kinds(talk)]
            lines.append(f"{Path(talk.image).name}: rating {talk.rating:.2f}, training rows of {tokens} tokens")
    print("\n".join(lines))
    return lines


def refusals(folder: Path) -> list[str]:
    """Return what was refused or cut, one line each."""
    lines = []
    for outcome in read_lines(folder / "outcomes.jsonl"):
        lines += [f"{outcome['id']}: cut {cut['sentence']!r}: {cut['why']}" for cut in outcome["dropped"]]
        lines += [f"{outcome['id']}: refused by {item['filter']}: {item['reason']}" for item in outcome["rejections"]]
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
