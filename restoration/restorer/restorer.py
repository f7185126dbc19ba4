"""`Restorer`: one interface over everything that makes a better image of a bad one, many times over."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.agreement import agreeing
from restoration.restorer.image_io import (
    COLOUR_FIXES,
    KERNELS,
    PROMPT,
    check_choice,
    colour_fix,
    drawn_sharpness,
    prompt_text,
    sharpened,
)
from restoration.restorer.loading import is_pipeline, load_pipeline, pipeline_engine, plain_engine, refuse
from restoration.restorer.pipeline_engine import Engine, PipelineEngine
from restoration.restorer.rng import Apart, DrewAnyway
from restoration.restorer.tiling import Tiling, restore_tiled
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.fingerprint import fingerprint
from zoomiqa_reward.model.numerics import callers_precision
from zoomiqa_reward.rewards.identity import state_digest

DEFAULT_OVERLAP_PX = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Restored:
    """One candidate, with what its image depends on."""

    image: Tensor
    """[3, height, width] float32 in [0, 1], on the CPU."""
    seed: int
    batch_position: int
    """Place in its batch. Outside strict mode neighbours can change the last bits (diffusers issue 2659)."""
    batch_size: int
    deterministic: bool
    """True: every seed gives this image."""
    prompt: str | None = None
    """The prompt used; None where the restorer takes none."""
    sharpness: float = 0.0
    """How much sharper than given the restorer saw its input (`vary_sharpness`)."""


class Restorer:
    """Restores an image, once a seed."""

    def __init__(
        self, engine: Engine, *, prompt: PROMPT = "", negative_prompt: PROMPT = "", colour_fix: str = "none",
        tiling: Tiling | None = None, vary_sharpness: float = 0.0, checks_draws: bool = False,
    ) -> None:  # fmt: skip
        """Wrap an engine; use `from_pretrained` unless you write an engine of your own.

        checks_draws: refuse draws from the global generators by what is thought to be deterministic.
        """
        check_choice("colour_fix", colour_fix, COLOUR_FIXES)
        if not 0 <= vary_sharpness <= 1:
            raise ValueError(f"vary_sharpness={vary_sharpness}: must be 0 (the input as it is) to 1")
        self.engine, self.prompt, self.negative_prompt = engine, prompt, negative_prompt
        self.colour_fix, self.tiling, self._draws = colour_fix, tiling, Apart(refuse=checks_draws)
        self.vary_sharpness = vary_sharpness
        self._has_said: set[str] = set()

    @classmethod
    def from_pretrained(
        cls, source: Any = "nano", *, scale: int | None = None, device: str | torch.device | None = None,
        dtype: torch.dtype | None = None, prompt: PROMPT = "", negative_prompt: PROMPT = "",
        pre_upscale: str = "auto", colour_fix: str = "none", vary_sharpness: float = 0.0, tile_px: int | None = None,
        tile_overlap_px: int = DEFAULT_OVERLAP_PX, steps: int | None = None, name: str | None = None,
        image_form: str | None = None, multiple_px: int | None = None, deterministic: bool | None = None,
        fingerprint: str | None = None, value_range: str | None = None, **call_arguments: Any,
    ) -> "Restorer":  # fmt: skip
        """Return a restorer of `source`.

        source: "nano" (embedded, x4), a hub id or a folder of a diffusers pipeline, a pipeline, a network BCHW to
        BCHW in [0, 1] (or a spandrel descriptor), or `fn(image)` or `fn(image, seed)` of a CHW image in [0, 1].

        scale: output over input; needed where the system does not fix it (ControlNet, img2img, edit models).
        device, dtype: where a pipeline or a network goes; what you built yourself stays where it is by default, what
        is loaded goes to CUDA if there is one, in float32.
        prompt, negative_prompt: a text, or a callable that makes one of the image; dropped, and said so once,
        where the system takes none. pre_upscale: "auto" enlarges first, bicubic, for a pipeline whose output is as
        large as its input; "none" or a kernel decide it. colour_fix: "none", "adain" or "wavelet".
        vary_sharpness: every candidate sees the image a little softer or sharper, by an amount drawn from its seed
        (0: as it is; 1: from blurred to sharpened by as much, sigma 0.8 px; see `hooks.sharpened`). Makes candidates
        differ in structure, also those of a deterministic restorer.
        tile_px, tile_overlap_px: restore in tiles of this side, in pixels of the LR image; see `tiling.py`.
        steps: num_inference_steps. name: how results call it. call_arguments: passed to the pipeline's call.

        image_form, multiple_px: override what `systems.py` knows. deterministic: False for a function or a network
        without a seed that draws from the global generators (they are set for each candidate and put back).
        fingerprint: stands for a function where its source does not say all. value_range: what a network or a function
        writes: "unit" (0..1, the default), "signed" (-1..1) or "bytes" (0..255); another answer to an image from black
        to white is refused, so that bright and dark images are not read in different ways.

        Raises ValueError for arguments that the source has no use for, TypeError for an unknown source, OSError and
        ImportError from loading.
        """
        tiling = None if tile_px is None else Tiling(tile_px=tile_px, overlap_px=tile_overlap_px)
        check_choice("pre_upscale", pre_upscale, ("auto", *KERNELS))
        if isinstance(source, str | Path):
            name = name or Path(source).name
            source = load_pipeline(source, dtype=dtype)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if is_pipeline(source):
            refuse(
                "a diffusers pipeline", deterministic=deterministic, fingerprint=fingerprint, value_range=value_range
            )
            call = call_arguments if steps is None else {"num_inference_steps": steps} | call_arguments
            engine: Engine = pipeline_engine(
                source, name=name, scale=scale, device=device, dtype=dtype, pre_upscale=pre_upscale,
                image_form=image_form, multiple_px=multiple_px, call=call,
            )  # fmt: skip
        else:
            refuse("a network or a function", steps=steps, image_form=image_form, **call_arguments)
            engine = plain_engine(
                source, name=name, scale=scale, device=device, dtype=dtype, pre_upscale=pre_upscale,
                multiple_px=multiple_px, deterministic=deterministic, fingerprint=fingerprint,
                value_range=value_range,
            )  # fmt: skip
        checks_draws = engine.deterministic and deterministic is None
        return cls(engine, prompt=prompt, negative_prompt=negative_prompt, colour_fix=colour_fix, tiling=tiling,
                   vary_sharpness=vary_sharpness, checks_draws=checks_draws)  # fmt: skip

    @property
    def name(self) -> str:
        """How results call it."""
        return self.engine.name

    @property
    def scale(self) -> int | None:
        """Output over input; None for a function or a network that has not told yet."""
        return self.engine.scale

    @property
    def deterministic(self) -> bool:
        """Whether every seed gives the same image."""
        return self.engine.deterministic and self.vary_sharpness == 0

    @property
    def takes_prompt(self) -> bool:
        """Whether a prompt changes anything."""
        return "prompt" in self.engine.prompts

    @property
    def fingerprint(self) -> str:
        """16 hex digits of weights, configuration, call arguments and library versions; reads all weights once."""
        return fingerprint(self.fingerprint_parts())

    @property
    def identity(self) -> dict[str, Any]:
        """The name and what the fingerprint is made of."""
        return {"name": self.name, **self.fingerprint_parts()}

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what the fingerprint is made of. A function's scale is not in it: only an image tells it."""
        texts = (self.prompt, self.negative_prompt)
        return {
            "engine": self.engine.parts(), "colour_fix": self.colour_fix, "vary_sharpness": self.vary_sharpness,
            "prompts": [text if isinstance(text, str) else state_digest(text) for text in texts],
            "tiling": None if self.tiling is None else asdict(self.tiling),
            "versions": {"torch": version("torch"), "numpy": version("numpy")},
        }  # fmt: skip

    def restore(
        self, image: Any, seeds: Sequence[int], *, prompt: PROMPT | None = None,
        negative_prompt: PROMPT | None = None, strict: bool = True, batch_size: int = 1,
    ) -> Iterator[Restored]:  # fmt: skip
        """Yield one candidate a seed, in order, each as soon as it is there.

        image: anything that `load_image` takes. prompt, negative_prompt: instead of the restorer's own.

        strict: each candidate in a call of its own, so that a seed's image is bit-equal whatever else is drawn;
        `batch_size` then does nothing. Otherwise `batch_size` candidates share a call, which may change the last bits,
        and noise that a pipeline draws without a generator belongs to the batch. A deterministic restorer runs once.

        Autocast, default dtype and default device of the caller change nothing; TF32 is the process's own choice.
        Several threads may restore, also with one pipeline, where they wait for one another. Nobody else's random
        numbers change, except by functions and networks that draw from Python's or numpy's generators: those are set
        for each candidate and put back, and other threads that draw meanwhile share them.

        Raises ImageError, ValueError (a seed below 0, a batch below 1) at once, RestorationError at a candidate.
        """
        if batch_size < 1 or any(seed < 0 for seed in seeds):
            raise ValueError(f"batch_size={batch_size}, seeds={list(seeds)}: at least 1, and 0 or more")
        image_lq = load_image(image).detach().cpu()
        texts = self._texts(image_lq, prompt, negative_prompt)
        alone = strict or not self.engine.batches or self.vary_sharpness > 0  # each sees an image of its own
        size = 1 if alone else batch_size
        return self._restore(image_lq, list(seeds), texts, size)

    def _restore(self, image: Tensor, seeds: list[int], texts: dict[str, str], size: int) -> Iterator[Restored]:
        made: list[Tensor] = []
        for start in range(0, len(seeds), size):
            batch = seeds[start : start + size]
            sharpness = drawn_sharpness(batch[0], self.vary_sharpness)
            if not made or not self.deterministic:
                made = self._draw(image, sharpened(image, sharpness), batch, texts)
            for position, (seed, restored) in enumerate(zip(batch, made, strict=True)):
                yield Restored(image=restored, seed=seed, batch_position=position, batch_size=len(batch),
                               deterministic=self.deterministic, prompt=texts.get("prompt"),
                               sharpness=sharpness)  # fmt: skip

    def _draw(self, image: Tensor, seen: Tensor, seeds: list[int], texts: dict[str, str]) -> list[Tensor]:
        def restore(tile: Tensor, tile_seeds: Sequence[int]) -> list[Tensor]:
            return self._run_seeded(lambda: self.engine(tile, tile_seeds, texts), tile_seeds[0])

        with callers_precision():
            found = restore(seen, seeds) if self.tiling is None else restore_tiled(restore, seen, seeds, self.tiling)
            if seen is not image and self.engine.agreement_px is not None:
                # They agree with the image that they saw: the softer or sharper one, not the one that was given.
                blur_px = self.engine.agreement_px
                found = [agreeing(one[None], image[None], blur_px)[0].clamp(0, 1) for one in found]
            return [colour_fix(restored, image, self.colour_fix) for restored in found]

    def _run_seeded(self, run: Callable[[], list[Tensor]], seed: int) -> list[Tensor]:
        """Run the engine so that its images follow from the seed, and nobody else's random numbers do."""
        if isinstance(self.engine, PipelineEngine):  # draws from torch alone, and from the generators it is given
            with own_draws(seed):
                return run()
        try:
            return self._draws(run, seed)
        except DrewAnyway:
            raise ValueError(
                f"{self.name} takes no seed, yet drew from a global random generator: pass "
                "deterministic=False (they are then set for each candidate), or True if the draw means nothing"
            ) from None

    def _texts(self, image: Tensor, prompt: PROMPT | None, negative_prompt: PROMPT | None) -> dict[str, str]:
        wanted = {
            "prompt": self.prompt if prompt is None else prompt,
            "negative_prompt": self.negative_prompt if negative_prompt is None else negative_prompt,
        }
        for key in sorted(set(wanted) - self.engine.prompts):
            if wanted.pop(key) != "" and key not in self._has_said:
                self._has_said.add(key)
                warnings.warn(f"{self.name} takes no {key}; it is dropped", stacklevel=4)
        return {key: prompt_text(text, image) for key, text in wanted.items()}
