"""Both trainers, end to end, on a few degraded copies of one photograph: SFT on written answers, then RL. Minutes.

    python examples/train_tiny.py [photo.jpg]

This shows how the pieces fit; two steps teach a model nothing.
"""

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from train_iqa import grpo, sft
from train_iqa.data import IqaDataset, LabelledImage, Scale
from train_iqa.rows.conversations import Conversation, write_conversations
from train_iqa.sft import ConversationSource
from train_iqa.training.recipes import nano
from train_iqa.training.run_state import read_log
from zoomiqa_reward.images import load_image, save_png

SIDE_PX = 112
ANSWER = (
    "<think>\nImage Quality Summary: The photo shows {fault}.\nDirections for Improvement: Clean detail.\n"
    "Issues to Avoid: {fault}.\nDecision & Rationale: The image is even, so I decide now.\n</think>\n"
    '<answer>{{"bbox_2d": [0, 0, 0, 0], "rating": {rating:.2f}, "tool": "final"}}</answer>'
)


def main(image: str | Path, model: str = "nano", steps: int = 2) -> list[str]:
    """Train `model` for a few steps of each stage; print and return a line per step."""
    photograph = load_image(image)[:, :SIDE_PX, :SIDE_PX]
    images, talks, lines = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for k in range(8):
            rating = 4.6 - 0.45 * k
            damaged = degrade_for_demo(photograph, scale=1, blur_px=0.3, noise=0.03 * k, quality=95)
            path = save_png(damaged, root / f"{k}.png")
            answer = ANSWER.format(fault="grainy noise", rating=rating)
            talks.append(Conversation(image=path, rounds=(answer,), rating=rating))
            images.append(
                LabelledImage(
                    dataset="noise", id=path.name, path=path, mos=rating, std=math.nan, label=rating, split="training"
                )
            )
        write_conversations(root / "talks.jsonl", talks)

        recipe = nano()
        base = replace(recipe.sft.model, name=model, device="cpu")
        small = {"steps": steps, "tensorboard": False}
        first = replace(
            recipe.sft, model=base, data=(ConversationSource(path=root / "talks.jsonl"),), out=root / "sft",
            rows_per_step=8, **small,
        )  # fmt: skip
        tuned = sft.train(first)
        lines += [f"SFT step {row['step']}: loss {row['loss']:.3f}" for row in read_log(root / "sft")]

        scale = Scale(worst=1.0, best=5.0)
        dataset = IqaDataset(name="noise", family="csv", root=root, scale=scale, images=tuple(images))
        second = replace(
            recipe.grpo, model=replace(base, name=str(tuned)), out=root / "grpo", num_samples=2, max_new_tokens=160,
            page_every=0, **small,
        )  # fmt: skip
        grpo.train(second, [dataset])
        lines += [
            f"RL step {row['step']}: reward {row['reward_total']:.3f}, entropy {row['entropy']:.2f}, "
            f"{row['held_tokens']:.0f} of {row['tokens']:.0f} tokens held"
            for row in read_log(root / "grpo")
        ]
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
