"""`Restorer`: one interface for pipelines, networks and functions that restore an image."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    SharpnessRange,
    check_choice,
    colour_fix,
    drawn_sharpness,
    prompt_text,
    sharpened,
    sharpness_range,
)
from restoration.restorer.loading import (
    RestorerSource,
    is_pipeline,
    load_pipeline,
    pipeline_engine,
    plain_engine,
    refuse,
)
from restoration.restorer.noise import NoiseStep, mixed_draws
from restoration.restorer.pipeline_engine import MASK, Engine, PipelineEngine
from restoration.restorer.rng import SEED_END, Apart, DrewAnyway
from restoration.restorer.tiling import Tiling, restore_tiled
from zoomiqa_reward.images.loading import ImageSource, load_image
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.fingerprint import fingerprint
from zoomiqa_reward.model.numerics import callers_precision, precision_settings
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.whole_numbers import whole_numbers

DEFAULT_OVERLAP_PX = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Restored:
    """One restoration, with everything that its pixels depend on."""

    image: Tensor
    """[3, height, width] float32 in [0, 1], on the CPU."""
    seed: int
    batch_position: int
    """Index in its batch. Outside strict mode the other members can change the last bits (diffusers issue 2659)."""
    batch_size: int
    deterministic: bool
    """True if every seed gives this image."""
    prompt: str | None = None
    """The prompt; None if the restorer takes none."""
    sharpness: float = 0.0
    """How much the input was sharpened for this candidate (`vary_sharpness`); negative: softened."""


class Restorer:
    """Restore an image, once per seed."""

    def __init__(
        self, engine: Engine, *, prompt: PROMPT = "", negative_prompt: PROMPT = "", colour_fix: str = "none",
        tiling: Tiling | None = None, vary_sharpness: SharpnessRange = 0.0, checks_draws: bool = False,
    ) -> None:  # fmt: skip
        """Wrap an engine. Use `from_pretrained` unless you write your own engine.

        checks_draws: raise if an engine that is declared deterministic draws from a global generator.
        """
        check_choice("colour_fix", colour_fix, COLOUR_FIXES)
        self.engine, self.prompt, self.negative_prompt = engine, prompt, negative_prompt
        self.colour_fix, self.tiling, self._draws = colour_fix, tiling, Apart(refuse=checks_draws)
        self.vary_sharpness = vary_sharpness
        low, high = sharpness_range(vary_sharpness)
        self._varies = low < high
        """Whether candidates see inputs of different sharpness."""
        self._has_said: set[str] = set()

    @classmethod
    def from_pretrained(
        cls, source: RestorerSource = "nano", *, scale: int | None = None, device: str | torch.device | None = None,
        dtype: torch.dtype | None = None, prompt: PROMPT = "", negative_prompt: PROMPT = "",
        pre_upscale: str = "auto", colour_fix: str = "none", vary_sharpness: SharpnessRange = 0.0,
        tile_px: int | None = None, tile_overlap_px: int = DEFAULT_OVERLAP_PX, steps: int | None = None,
        name: str | None = None, image_form: str | None = None, multiple_px: int | None = None,
        deterministic: bool | None = None, fingerprint: str | None = None, value_range: str | None = None,
        **call_arguments: object,
    ) -> "Restorer":  # fmt: skip
        """Return a restorer for `source`.

        source: "nano" (embedded, x4), a hub id or a folder of a diffusers pipeline, a pipeline, a network BCHW to
        BCHW in [0, 1] (or a spandrel descriptor), or `fn(image)` or `fn(image, seed)` of a CHW image in [0, 1].

        scale: output size divided by input size; needed if the system has no fixed one (ControlNet, img2img, edits).
        device, dtype: of a pipeline or a network. By default an object that you built stays where it is, and loaded
        weights go to CUDA if there is one, in float32.
        prompt, negative_prompt: a text, or a callable that makes a text from the image. If the system takes none, they
        are dropped with one warning.
        pre_upscale: "auto" first enlarges by bicubic if the output of the pipeline has the size of its input; "none"
        or a kernel name overrides this. colour_fix: "none", "adain" or "wavelet".
        vary_sharpness: each candidate sees a softer or sharper input; the seed draws the amount (0: the original; 1:
        from blurred to sharpened by as much, sigma 0.8 px; see `image_io.sharpened`), or draws it from a pair (lowest,
        highest) within -1 to 1. Candidates then differ in structure, also those of a deterministic restorer. A pair of
        equal numbers is the same amount for all.
        tile_px, tile_overlap_px: restore in tiles of this side, in low-quality pixels; see `tiling.py`.
        steps: num_inference_steps. name: name in results. call_arguments: passed to the call of the pipeline.

        image_form, multiple_px: override the known facts about a pipeline. deterministic: False for a function or
        network without a seed that draws from the global generators; they are then set for each candidate and put back.
        fingerprint: identifies a function that reads files. value_range: range of the output of a network or function:
        "unit" (0..1, default), "signed" (-1..1) or "bytes" (0..255). A test image from black to white checks it, so
        that bright and dark images are not read in different ways.

        Raises ValueError for arguments that the source cannot use, TypeError for an unknown source, OSError and
        ImportError from loading.
        """
        tiling = None if tile_px is None else Tiling(tile_px=tile_px, overlap_px=tile_overlap_px)
        check_choice("pre_upscale", pre_upscale, ("auto", *KERNELS))
        if isinstance(source, str | Path):
            name = name or Path(source).name
            device = find_device(device)
            source = load_pipeline(source, dtype=dtype)
            dtype = None  # it has it; a cast would reach the layers that loading keeps in float32, as T5's, too
        elif device is not None:
            device = find_device(device)
        if is_pipeline(source):
            if tiling is not None and MASK in call_arguments:
                raise ValueError(
                    f"tile_px={tile_px}: a {MASK} is that of the whole image, not of its tiles; leave one out"
                )
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
        """Name in results."""
        return self.engine.name

    @property
    def scale(self) -> int | None:
        """Output size divided by input size; None for a function or network that has not run yet."""
        return self.engine.scale

    @property
    def deterministic(self) -> bool:
        """Whether every seed gives the same image."""
        return self.engine.deterministic and not self._varies

    @property
    def takes_prompt(self) -> bool:
        """Whether a prompt changes anything."""
        return "prompt" in self.engine.prompts

    @property
    def fingerprint(self) -> str:
        """16 hex digits of weights, configuration, call arguments, library versions and precision settings.

        Reads all weights once. TF32 and the like are the process's choice, so they count; on a machine with CUDA, so do
        its settings and the kind of GPU.
        """
        return fingerprint(self.fingerprint_parts())

    @property
    def identity(self) -> dict[str, object]:
        """The name and the values behind the fingerprint."""
        return {"name": self.name, **self.fingerprint_parts()}

    def fingerprint_parts(self) -> dict[str, object]:
        """Return the values that the fingerprint covers. The scale of a function is not among them, because only a run
        shows it.
        """
        texts = (self.prompt, self.negative_prompt)
        return {
            "engine": self.engine.parts(), "colour_fix": self.colour_fix, "vary_sharpness": self.vary_sharpness,
            "prompts": [text if isinstance(text, str) else state_digest(text) for text in texts],
            "tiling": None if self.tiling is None else asdict(self.tiling),
            "versions": {"torch": version("torch"), "numpy": version("numpy")},
            "precision": _precision(),
            **({"subclass": state_digest(*added)} if (added := added_by_subclass(self, Restorer)) else {}),
        }  # fmt: skip

    def restore(
        self, image: ImageSource, seeds: Sequence[int], *, prompt: PROMPT | None = None,
        negative_prompt: PROMPT | None = None, strict: bool = True, batch_size: int = 1,
        noise: Sequence[NoiseStep] = (),
    ) -> Iterator[Restored]:  # fmt: skip
        """Yield one candidate per seed, in order, as soon as each is ready.

        image: anything that `load_image` takes. prompt, negative_prompt: instead of the restorer's own.
        noise: steps away from the noise of each seed (`noise.py`), for what the seed draws as Gaussian noise and for
        the sharpness. Each candidate then has its own call.

        strict: each candidate has its own call, so the image of a seed is bit-equal whatever else is drawn;
        `batch_size` is ignored. Otherwise `batch_size` candidates share a call. This may change the last bits, and
        noise that a pipeline draws without a generator then depends on the batch. A deterministic restorer runs once.

        Autocast, default dtype and default device of the caller change nothing; TF32 follows the process.
        Several threads may restore; with one pipeline they wait for each other. The random numbers of other code do
        not change, with one exception: for a function or network that draws from Python's or numpy's generators, those
        are set for each candidate and put back, and other threads see this.

        Raises ImageError, TypeError (a seed that is no integer), ValueError (a seed or batch out of range, noise of a
        deterministic restorer) at once, RestorationError at a candidate, and ValueError there if `noise` is given and
        none was drawn through torch.
        """
        if noise and self.deterministic:
            raise ValueError(f"{self.name} takes no seed, so it has no noise to move: pass a restorer that draws some")
        if not isinstance(seeds, Iterable):
            raise TypeError(f"seeds={seeds!r}: must be a list of whole numbers, such as [0, 1]")
        numbers = [whole_numbers(seed=seed)[0] for seed in seeds]
        if batch_size < 1 or not all(0 <= number < SEED_END for number in numbers):
            raise ValueError(
                f"batch_size={batch_size}, seeds={numbers}: batch_size must be at least 1, a seed 0 or more, below 2^64"
            )
        image_lq = load_image(image).detach().cpu()
        texts = self._texts(image_lq, prompt, negative_prompt)
        # With varied sharpness, or moved noise, each has something of its own.
        alone = strict or not self.engine.batches or self._varies or bool(noise)
        size = 1 if alone else batch_size
        return self._restore(image_lq, numbers, texts, size, noise)

    def _restore(
        self, image: Tensor, seeds: list[int], texts: dict[str, str], size: int, noise: Sequence[NoiseStep]
    ) -> Iterator[Restored]:
        made: list[Tensor] = []
        for start in range(0, len(seeds), size):
            batch = seeds[start : start + size]
            sharpness = drawn_sharpness(batch[0], self.vary_sharpness, noise)
            seen = sharpened(image, sharpness)
            if noise:
                made = self._draw_near(image, seen, batch, texts, noise)
            elif not made or not self.deterministic:
                made = self._draw(image, seen, batch, texts)
            for position, (seed, restored) in enumerate(zip(batch, made, strict=True)):
                yield Restored(image=restored, seed=seed, batch_position=position, batch_size=len(batch),
                               deterministic=self.deterministic, prompt=texts.get("prompt"),
                               sharpness=sharpness)  # fmt: skip

    def _draw_near(
        self, image: Tensor, seen: Tensor, seeds: list[int], texts: dict[str, str], noise: Sequence[NoiseStep]
    ) -> list[Tensor]:
        with mixed_draws(noise) as draws:
            made = self._draw(image, seen, seeds, texts)
        if not draws.has_drawn and not self._varies:
            raise ValueError(
                f"{self.name} draws no Gaussian noise through torch, so there is none to move: draw with "
                "torch.randn, or pass vary_sharpness=0.5, which can be moved for every restorer"
            )
        return made

    def _draw(self, image: Tensor, seen: Tensor, seeds: list[int], texts: dict[str, str]) -> list[Tensor]:
        def restore(tile: Tensor, tile_seeds: Sequence[int]) -> list[Tensor]:
            return self._run_seeded(lambda: self.engine(tile, tile_seeds, texts), tile_seeds[0])

        with callers_precision():
            outputs = restore(seen, seeds) if self.tiling is None else restore_tiled(restore, seen, seeds, self.tiling)
            if seen is not image and self.engine.agreement_px is not None:
                # They agree with the image that they saw: the softer or sharper one, not the one that was given.
                blur_px = self.engine.agreement_px
                outputs = [agreeing(output[None], image[None], blur_px)[0].clamp(0, 1) for output in outputs]
            return [colour_fix(restored, image, self.colour_fix) for restored in outputs]

    def _run_seeded(self, run: Callable[[], list[Tensor]], seed: int) -> list[Tensor]:
        """Run the engine so that its images follow from the seed and other random numbers do not move."""
        if isinstance(self.engine, PipelineEngine):  # draws from torch alone, and from the generators it is given
            with own_draws(seed):
                return run()
        try:
            return self._draws(run, seed)
        except DrewAnyway:
            raise ValueError(
                f"{self.name} takes no seed but drew from a global random generator: pass "
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


def _precision() -> dict[str, Any]:
    """What the process has chosen that decides the bits of an image; empty on a CPU where nothing was chosen."""
    has_cuda = torch.cuda.is_available()
    gpu = {"gpu": torch.cuda.get_device_name()} if has_cuda else {}
    return gpu | precision_settings(cuda=has_cuda)
