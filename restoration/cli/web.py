"""`zoomiqa web`: a page that rates, compares and restores images, on this machine.

What needs torch or Gradio is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from restoration.cli import options
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.runs.program import stop_when_told

if TYPE_CHECKING:
    from restoration.restorer.restorer import Restorer

Host = Annotated[str, typer.Option(help="Address to listen on; every address but loopback needs ZOOMIQA_TOKEN.")]
Port = Annotated[int | None, typer.Option(help="Port; default: the first free one from 7860.", min=1, max=65535)]
MaxMegapixels = Annotated[float, typer.Option(help="Largest image that is rated, in million pixels.", min=0.01)]
MaxUploadMib = Annotated[int, typer.Option(help="Largest uploaded file in MiB.", min=1)]
MaxInputPx = Annotated[int, typer.Option(help="Longest side of an image that is restored.", min=16)]


def web(
    host: Host = "127.0.0.1",
    port: Port = None,
    model: inputs.Model = "nano",
    restorer: options.RestorerName = "nano",
    scale: options.Scale = None,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
    max_megapixels: MaxMegapixels = 9.0,
    max_upload_mib: MaxUploadMib = 64,
    max_input_px: MaxInputPx = 160,
) -> int:
    """Serve a page that rates, compares and restores images, until interrupted. Nothing leaves this machine."""
    from restoration.web.server import require_password, serve_page
    from restoration.web.studio import Studio
    from restoration.web.uploads import StudioLimits

    token = os.environ.get("ZOOMIQA_TOKEN") or None
    require_password(host, token)
    import_module("gradio")  # without it the extra is named before anything is loaded

    def load_restorers() -> "list[Restorer]":
        from restoration.selection.pool import varied_pool

        return varied_pool(restorer, scale=scale, device=device)

    limits = StudioLimits(
        max_upload_mib=max_upload_mib, max_pixels=round(max_megapixels * 1e6), max_input_px=max_input_px
    )
    studio = Studio(
        lambda: inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol),
        load_restorers, limits,
    )  # fmt: skip
    stopped = stop_when_told()
    serving = serve_page(studio, f"Model: {model}", host=host, port=port, token=token)
    with serving as url:
        name = studio.judge.result().name  # a model that cannot be loaded ends the command here
        output.json_line({"url": url, "model": name})
        print(f"the page is at {url}; Ctrl-C stops it", file=sys.stderr)
        try:
            stopped.wait()
        except KeyboardInterrupt:
            print("stopping ...", file=sys.stderr)
    return 0
