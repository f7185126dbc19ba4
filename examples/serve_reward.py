"""Serve the rating on this machine and ask for it as another machine would. A CPU is enough; needs the extra `serve`.

python examples/serve_reward.py [photo.jpg]
"""

import secrets
import sys
from pathlib import Path

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from zoomiqa_reward.images import load_image
from zoomiqa_reward.serving import RemoteReward, RewardServer, RewardSpec, ServeConfig

SIDE_PX = 112


def main(image: str | Path, model: str = "nano") -> list[str]:
    """Print the rating of a photograph and of worse copies, and what failed; return the names, best first."""
    photograph = load_image(image)[:, :SIDE_PX, :SIDE_PX]
    copies = {
        "as it is": photograph,
        "blurred": degrade_for_demo(photograph, scale=1, blur_px=3.0, noise=0.0, quality=95),
        "noisy": degrade_for_demo(photograph, scale=1, blur_px=0.3, noise=0.15, quality=95),
        "lost": "no-such-file.png",
    }
    token = secrets.token_urlsafe(32)
    # Ray copies what it starts: the model is loaded once in each replica.
    config = ServeConfig(spec=RewardSpec(model=model), port=0, replicas=1, tokens=(token,))
    with RewardServer(config) as server, RemoteReward(server.url, token=token) as reward:
        scores = reward(list(copies.values()))  # a Reward like any other: best-of-N and tuning take it as it is
    names = list(copies)
    # NaN is no low score: what could not be measured comes last and says why.
    order = sorted(range(len(names)), key=lambda k: (not scores.valid[k], -scores.value[k].item()))
    for k in order:
        value = f"{scores.value[k]:.4f}" if scores.valid[k] else f"not rated ({scores.info['errors'][k]})"
        print(f"{names[k]:10s} {value}")
    return [names[k] for k in order]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
