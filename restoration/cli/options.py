"""Options that several commands of this package share."""

from typing import Annotated

import typer

ImageFile = Annotated[str, typer.Argument(help="The low-quality image.", show_default=False)]
RestorerName = Annotated[str, typer.Option("--restorer", help="'nano' (embedded, x4), a hub id or a folder.")]
Seed = Annotated[int, typer.Option(help="Determines every restoration.", min=0)]
Scale = Annotated[int | None, typer.Option(help="Enlargement, for pipelines without a fixed one.", min=1)]
DatasetScale = Annotated[int, typer.Option(min=1, help="Enlargement.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", min=1)]
TilePx = Annotated[int | None, typer.Option(help="Restore in tiles of this side, in low-quality pixels.")]
ColourFix = Annotated[str, typer.Option(help="none, adain or wavelet.")]
Degradation = Annotated[str, typer.Option(help="Degradation of good images: bicubic, mild, moderate or realesrgan.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images.")]
ResultJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line on stdout.")]
