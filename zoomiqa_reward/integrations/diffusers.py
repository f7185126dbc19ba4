"""Scores during sampling: of the clean image that a diffusers pipeline predicts at each denoising step.

`score_steps` wraps `pipe.scheduler.step`, which every pipeline calls, whether or not it offers callbacks. After a step
the predicted clean sample x0 is decoded and scored; the output of the pipeline does not change, bit for bit. Nothing is
imported from diffusers: what is used of it are `step`, its output's fields, and the scheduler's tables.

x0 is the scheduler's own (`pred_original_sample`, or `denoised`) where its output has it. Else, with a and s the
signal's and the noise's part of the sample, x = a x0 + s noise:

    epsilon: (x - s e) / a      v_prediction: a x - s v      sample: the output itself      flow: x - s v

Source: the schedulers' documentation; for a and s of those that work in sigmas, a = 1 / sqrt(1 + sigma^2), s = sigma a.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSources
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.model.shared_state import Undo, shared_change
from zoomiqa_reward.rewards.base import Reward, ask

_IN_SIGMAS = (
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "SASolverScheduler",
)  # fmt: skip
"""Schedulers that have no x0 in their output and whose samples keep their variance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepScore:
    """One scored step."""

    step: int
    """Counted from 0, of all calls inside the `with`."""
    timestep: float
    scores: Scores
    """One an image of the step's batch."""


@contextmanager
def score_steps(
    pipe: Any,
    reward: Reward,
    every: int = 1,
    *,
    lq: ImageSources | None = None,
    hr: ImageSources | None = None,
    prompts: Sequence[str] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[list[StepScore]]:
    """Yield a list that grows by one `StepScore` at steps 0, every, 2 every, ... of the calls made inside.

    lq, hr, prompts: handed to the reward, one per image of the batch. decode: x0 -> float BCHW in [0, 1]; by default
    the pipeline's own `decode_x0`, as the embedded restorer has it, or its `vae` or `vqvae`, or x0 itself, mapped from
    [-1, 1], where it has none of them. What a reward draws from
    torch comes from a generator of its own. On leaving, also by an exception, the scheduler is as it was; do not swap
    it inside. Only steps of this thread are scored, where several threads use the pipeline.

    Raises ValueError for every < 1; TypeError, at the first step, for a scheduler whose x0 is not known, for latents
    that only the pipeline can unpack, and for what is no image of 1 or 3 channels once decoded (give `decode`).
    """
    if every < 1:
        raise ValueError(f"every={every}: must be at least 1")
    results: list[StepScore] = []
    thread, count = threading.get_ident(), 0

    def watch(scheduler: Any, output: Any, given: dict[str, Any]) -> None:
        nonlocal count
        if threading.get_ident() != thread:  # another thread's image
            return
        if count % every == 0:
            with torch.no_grad(), own_draws(0):
                x0 = predicted_x0(scheduler, output, given["model_output"], given["timestep"], given["sample"])
                images = decode(x0) if decode is not None else decoded(pipe, x0)
                require_images(images, x0)
                scores = ask(reward, images.float(), lq=lq, hr=hr, prompts=prompts)
            results.append(StepScore(step=count, timestep=float(given["timestep"]), scores=scores))
        count += 1

    with _watching(pipe.scheduler, watch):
        yield results


Watch = Callable[[Any, Any, dict[str, Any]], None]
"""Gets the scheduler, a step's output and its arguments."""

_WATCHES: WeakKeyDictionary[Any, tuple[Watch, ...]] = WeakKeyDictionary()
"""Who watches a scheduler, from any thread."""
_LOCK = threading.Lock()


@contextmanager
def _watching(scheduler: Any, watch: Watch) -> Iterator[None]:
    with shared_change(scheduler, "watched", lambda: _watched(scheduler)):
        with _LOCK:
            _WATCHES[scheduler] = (*_WATCHES.get(scheduler, ()), watch)
        try:
            yield
        finally:
            with _LOCK:
                _WATCHES[scheduler] = tuple(item for item in _WATCHES[scheduler] if item is not watch)


def _watched(scheduler: Any) -> Undo:
    """Put a `step` on the scheduler that tells those who watch it; return what takes it off again."""
    original, override = scheduler.step, vars(scheduler).get("step")
    call = inspect.signature(original)

    @functools.wraps(original)  # pipelines read the signature to see whether `eta` may be passed
    def step(*args: Any, **kwargs: Any) -> Any:
        bound = call.bind(*args, **kwargs)
        wants_tuple = bound.arguments.get("return_dict", True) is False
        bound.arguments["return_dict"] = True
        output = original(*bound.args, **bound.kwargs)
        for watch in _WATCHES.get(scheduler, ()):
            watch(scheduler, output, bound.arguments)
        return output.to_tuple() if wants_tuple else output

    scheduler.step = step

    def undo() -> None:
        if override is None:
            del scheduler.step
        else:
            scheduler.step = override

    return undo


def predicted_x0(scheduler: Any, output: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Return the clean sample that a step just taken predicted, [batch, ...] as `sample`.

    output: what `step` returned. Raises TypeError for a scheduler that neither gives it nor is known here.
    """
    for field in ("pred_original_sample", "denoised"):
        x0: Tensor | None = getattr(output, field, None)
        if x0 is not None:
            return x0
    kind, prediction = type(scheduler).__name__, scheduler.config.get("prediction_type")
    if kind.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas"):
        return sample - _sigma(scheduler).to(sample) * model_output
    if kind in _IN_SIGMAS:
        sigma = _sigma(scheduler).to(sample)
        signal = (1 + sigma**2).rsqrt()
        noise = sigma * signal
    elif hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):
        share = scheduler.alphas_cumprod[int(timestep)].to(sample)
        signal, noise = share.sqrt(), (1 - share).sqrt()
    else:
        raise TypeError(
            f"score_steps cannot tell the predicted sample of {kind}; use DDIM, Euler, DPM-Solver or flow match"
        )
    if model_output.shape[1] == 2 * sample.shape[1]:
        model_output = model_output[:, : sample.shape[1]]  # the second half is a learned variance
    if prediction == "epsilon":
        return (sample - noise * model_output) / signal
    if prediction == "v_prediction":
        return signal * sample - noise * model_output
    if prediction == "sample":
        return model_output
    raise TypeError(f"{kind} predicts {prediction!r}: must be epsilon, v_prediction or sample")


def decoded(pipe: Any, x0: Tensor) -> Tensor:
    """Return x0 as images, float BCHW in [0, 1], by the pipeline's `decode_x0` or autoencoder where it has one.

    `decode_x0(x0)`, which a pipeline may have while it samples, returns such images. A `vae` undoes its scaling and
    shift first; a `vqvae` takes latents as they are. Raises TypeError for latents that are packed or normalised in the
    pipeline's own way.
    """
    if (own_decode := getattr(pipe, "decode_x0", None)) is not None:
        images: Tensor = own_decode(x0)
        return images
    if x0.ndim != 4:
        raise TypeError(f"score_steps: latents of shape {tuple(x0.shape)} are packed; give decode=")
    vae = getattr(pipe, "vae", None)
    if vae is not None:
        if getattr(vae.config, "latents_mean", None) is not None:
            raise TypeError("score_steps: this pipeline normalises its latents by channel; give decode=")
        x0 = x0 / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    autoencoder = vae if vae is not None else getattr(pipe, "vqvae", None)
    if autoencoder is not None:
        x0 = autoencoder.decode(x0.to(autoencoder.dtype)).sample
    return (x0 / 2 + 0.5).clamp(0, 1)


def require_images(images: Tensor, x0: Tensor) -> None:
    """Raise TypeError unless the decoded `images` are BCHW with 1 or 3 channels. x0: what they were decoded from."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise TypeError(
            f"score_steps: x0 of shape {tuple(x0.shape)} became {tuple(images.shape)}, which is no image of 1 or 3 "
            "channels: give decode=, a function of x0 that returns BCHW in [0, 1]"
        )


def _sigma(scheduler: Any) -> Tensor:
    """The sigma of the step just taken: by now the scheduler counts one further."""
    sigma: Tensor = scheduler.sigmas[scheduler.step_index - 1]
    return sigma
