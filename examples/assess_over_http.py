"""Ask a quality model behind an OpenAI-compatible text server, in words. A CPU is enough; `pip install -e '.[serve]'`.

    python examples/assess_over_http.py [photo.jpg]

The server here is `transformers serve` with the embedded model, on this machine. For vLLM or another machine leave
`serve` out and give its address, the model's name there, and the protocol.
"""

import sys
from pathlib import Path

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image
from zoomiqa_reward.model.text_server.local_server import serve

CROP_PX = 224


def main(image: str | Path, model: str = "nano") -> list[str]:
    """Print rating and words for a part of the photograph and a noisy copy; return their names, best first."""
    photograph = load_image(image)
    part = photograph[:, :CROP_PX, :CROP_PX]
    copies = {"as it is": part, "noisy": degrade_for_demo(part, scale=1, blur_px=0.3, noise=0.08, quality=95)}
    with serve(model) as served, ZoomIQA.from_server(served.base_url, served.model) as iqa:
        answers = dict(zip(copies, iqa.assess(list(copies.values())), strict=True))
    for name, answer in answers.items():
        words = " ".join(answer.turns[-1].text.split()) if answer.valid else answer.error
        print(f"{name:10s} {answer.rating:.2f} after {len(answer.turns)} rounds: {words}")
    return sorted(answers, key=lambda name: -answers[name].rating if answers[name].valid else 0.0)


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
