"""Compare two folders of the same images, here a photograph's parts with softer copies of them. A CPU is enough.

python examples/compare_folders.py [photo.jpg]
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.cli.compare import measure_pairs, pair_files
from zoomiqa_reward.runs.paired import paired_difference

PARTS_ACROSS = 3
SIDE_PX = 112


def main(image: str | Path, model: str = "nano") -> list[float]:
    """Print A - B of each pair and the result of all; return the differences and their mean."""
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(model))
    with tempfile.TemporaryDirectory() as home:
        a, b = make_folders(Path(home), image)
        pairs, unpaired = pair_files(a, b, recursive=False)
        assert len(pairs) == PARTS_ACROSS**2
        assert not unpaired
        measured = list(measure_pairs(reward, pairs))
    for pair in measured:
        print(f"{pair.name}: A {pair.values[0]:.2f}, B {pair.values[1]:.2f}, A - B {pair.difference:+.2f}")
    result = paired_difference([pair.values[0] for pair in measured], [pair.values[1] for pair in measured], tie=0.01)
    low, high = result.difference_interval
    print(f"A - B {result.difference:+.2f} ({low:+.2f} to {high:+.2f}), A wins {100 * result.win_rate:.0f} %")
    assert low <= result.difference <= high
    return [*(pair.difference for pair in measured), result.difference]


def make_folders(home: Path, image: str | Path) -> tuple[Path, Path]:
    """Write the parts into A, and into B shrunk to a fifth and enlarged again; return both folders."""
    photograph = Image.open(image).convert("RGB").resize((PARTS_ACROSS * SIDE_PX, PARTS_ACROSS * SIDE_PX))
    folders = home / "A", home / "B"
    for folder in folders:
        folder.mkdir()
    for k in range(PARTS_ACROSS**2):
        left, top = k % PARTS_ACROSS * SIDE_PX, k // PARTS_ACROSS * SIDE_PX
        part = photograph.crop((left, top, left + SIDE_PX, top + SIDE_PX))
        part.save(folders[0] / f"part{k}.png")
        part.resize((SIDE_PX // 5,) * 2).resize((SIDE_PX,) * 2).save(folders[1] / f"part{k}.png")
    return folders


if __name__ == "__main__":
    *differences, mean = main(*sys.argv[1:2] or [bundled_photograph()])
    assert mean > 0, f"nano prefers the softer copies by {-mean:.2f}"
