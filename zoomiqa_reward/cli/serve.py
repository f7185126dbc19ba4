"""`zoomiqa serve`: the reward as a service on Ray Serve.

What needs torch or ray is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName
from zoomiqa_reward.runs.program import stop_when_told

NumSamples = Annotated[int, typer.Option(help="Sampled answers per rating in mode reason.", min=1)]
Host = Annotated[str, typer.Option(help="Address to listen on; every address but loopback needs a token.")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)]
Replicas = Annotated[int, typer.Option(help="Scoring processes; each holds the whole model.", min=1)]
Threads = Annotated[int, typer.Option(help="Torch threads per replica; scores are bit-equal at equal threads.", min=1)]
Gpus = Annotated[float | None, typer.Option(help="GPUs per replica; default: 1 if there is a GPU.", min=0)]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with one token per line; default: the variable ZOOMIQA_TOKEN.")
]
BodyMib = Annotated[int, typer.Option(help="Largest request body in MiB.", min=1)]
MaxPixels = Annotated[int, typer.Option(help="Largest image, width x height.", min=1)]
ReadTimeout = Annotated[float, typer.Option(help="Seconds in which a request must arrive.", min=0.1)]
ComputeTimeout = Annotated[float, typer.Option(help="Seconds in which a request must be answered.", min=0.1)]
BatchPixels = Annotated[int, typer.Option(help="Pixels per forward pass, for batched requests.", min=1)]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to join ('auto'); default: start one.")]
RayFolder = Annotated[str | None, typer.Option(help="Folder of the Ray logs; default: a temporary one.")]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Start the Ray dashboard on loopback.")]


def serve(
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    num_samples: NumSamples = 1,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token_file: TokenFile = None,
    replicas: Replicas = 1,
    threads: Threads = 1,
    gpus_per_replica: Gpus = None,
    max_body_mib: BodyMib = 64,
    max_pixels: MaxPixels = 24_000_000,
    read_timeout: ReadTimeout = 20.0,
    compute_timeout: ComputeTimeout = 300.0,
    batch_pixels: BatchPixels = 1_000_000,
    ray_address: RayAddress = None,
    ray_folder: RayFolder = None,
    dashboard: Dashboard = False,
) -> int:
    """Serve a reward over HTTP until interrupted. When ready, print one JSON line with the URL."""
    from zoomiqa_reward.rewards.find import ZOOMIQA, model_of
    from zoomiqa_reward.serving.server import RewardServer, ServeConfig
    from zoomiqa_reward.serving.spec import MIB, Limits, RewardSpec

    served_model = model_of(reward, model)
    if served_model is not None:
        reward, model = ZOOMIQA, served_model
    body_bytes = max_body_mib * MIB
    config = ServeConfig(
        spec=RewardSpec(
            reward=reward, model=model, mode=mode, question=question, num_samples=num_samples, device=device,
            dtype=dtype, adapter=adapter, protocol=protocol, search_path=os.getcwd(),
        ),
        host=host, port=port, replicas=replicas, threads=threads, tokens=_tokens(token_file),
        gpus_per_replica=_gpus(device) if gpus_per_replica is None else gpus_per_replica,
        limits=Limits(
            max_body_bytes=body_bytes, max_held_bytes=max(Limits.max_held_bytes, 2 * body_bytes),
            max_pixels=max_pixels, read_timeout_s=read_timeout, compute_timeout_s=compute_timeout,
            batch_pixels=batch_pixels,
        ),
        ray_address=ray_address, ray_folder=ray_folder, dashboard=dashboard,
    )  # fmt: skip
    config.spec.require()  # before Ray starts processes, which would fail one after the other
    print(f"starting {replicas} replica(s) of {served_model or reward} ...", file=sys.stderr)
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), RewardServer(config) as server:  # Ray prints to stdout
        stopped = stop_when_told()  # after Ray, which has a handler of its own
        with contextlib.redirect_stdout(stdout):
            output.json_line(
                {"url": server.url, **{key: server.info[key] for key in ("name", "fingerprint", "threads")}}
            )
        print(f"serving {server.info['name']} at {server.url}; Ctrl-C stops it", file=sys.stderr)
        try:
            stopped.wait()
        except KeyboardInterrupt:
            print("stopping ...", file=sys.stderr)
    return 0


def _tokens(file: Path | None) -> tuple[str, ...]:
    """Return the tokens. They are no option, because every user of the machine can read the process list."""
    if file is not None:
        tokens = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        if not tokens:
            raise ValueError(f"--token-file {file}: holds no token; write one per line")
        return tokens
    token = os.environ.get("ZOOMIQA_TOKEN")
    return (token,) if token else ()


def _gpus(device: str | None) -> float:
    import torch

    wants_gpu = device is None or device.startswith("cuda")
    return 1.0 if wants_gpu and torch.cuda.is_available() else 0.0
