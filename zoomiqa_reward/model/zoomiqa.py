"""`ZoomIQA`: load a quality model, describe images in words, rate them in numbers."""

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Unpack

import torch

from zoomiqa_reward.images.loading import ImageSource, ImageSources, split_images
from zoomiqa_reward.model.ahead import load_ahead
from zoomiqa_reward.model.checkpoint import Checkpoint, DeviceMap, QuantizationConfig, load_checkpoint
from zoomiqa_reward.model.decoding import MODES, mean_and_std, samples_temperature, sampling_of
from zoomiqa_reward.model.direct import rate_direct, trie_of
from zoomiqa_reward.model.fingerprint import fingerprint, fingerprint_parts
from zoomiqa_reward.model.gradients import graph_to_pixels, require_gradient
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Assessment, Ratings
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.trie import RatingTrie
from zoomiqa_reward.protocol.spec import Protocol, ViewPolicy
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest

if TYPE_CHECKING:
    from zoomiqa_reward.model.pairs import Comparison
    from zoomiqa_reward.model.quality_map import QualityMap
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.text_server.remote import RemoteOptions


@dataclass(frozen=True, eq=False)
class ZoomIQA:
    """A Zoom-IQA model. Create it with `from_pretrained` or `from_server`."""

    checkpoint: Checkpoint

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "nano",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        adapter: str | os.PathLike[str] | None = None,
        protocol: str | os.PathLike[str] | Protocol | None = None,
        revision: str | None = None,
        device_map: DeviceMap | None = None,
        quantization_config: QuantizationConfig | None = None,
        attn_implementation: str | None = None,
    ) -> "ZoomIQA":
        """Load a model: `nano` (embedded), a folder or a hub id. Arguments: see `checkpoint.load_checkpoint`.

        Raises CheckpointError, ProtocolError.
        """
        return cls(
            load_checkpoint(
                name_or_path, device=device, dtype=dtype, adapter=adapter, protocol=protocol, revision=revision,
                device_map=device_map, quantization_config=quantization_config,
                attn_implementation=attn_implementation,
            )
        )  # fmt: skip

    @staticmethod
    def from_server(base_url: str, model: str, **options: "Unpack[RemoteOptions]") -> "RemoteZoomIQA":
        """Use a model behind an OpenAI-compatible text server. Arguments: see `text_server.RemoteZoomIQA.from_server`.

        Raises ProtocolError, ValueError; ImportError if the extra `serve` is missing.
        """
        from zoomiqa_reward.model.text_server import RemoteZoomIQA

        return RemoteZoomIQA.from_server(base_url, model, **options)

    def with_views(self, views: ViewPolicy) -> "ZoomIQA":
        """Return the same model, with shared weights, whose `direct` mode reads other views.

        `ViewPolicy.whole()` makes a cheap first stage of a cascade. Ratings and fingerprint differ from this model's.
        """
        return replace(self, checkpoint=replace(self.checkpoint, protocol=replace(self.protocol, views=views)))

    @property
    def differentiable(self) -> bool:
        """Whether `rate(grad=True)` works in mode `direct`: true for a model in this process."""
        return True

    @property
    def name(self) -> str:
        """Short name of the checkpoint and its adapter."""
        return self.checkpoint.name

    @property
    def protocol(self) -> Protocol:
        """Prompts, crop rules and decoding of this model."""
        return self.checkpoint.protocol

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.checkpoint.device

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights in memory, protocol, preprocessing, dtype, device and library versions."""
        return fingerprint(self.fingerprint_parts)

    @property
    def fingerprint_parts(self) -> dict[str, object]:
        """The values that the fingerprint covers."""
        added = added_by_subclass(self, ZoomIQA)
        return fingerprint_parts(self.checkpoint) | ({"subclass": state_digest(*added)} if added else {})

    @property
    def identity(self) -> dict[str, object]:
        """The name and the values behind the fingerprint, which show which option changed."""
        return {"name": self.name, **self.fingerprint_parts}

    @cached_property
    def trie(self) -> RatingTrie:
        """Tree of all ratings 1.00 .. 5.00 in this tokenizer."""
        return trie_of(self.checkpoint)

    @canonical
    def assess(
        self,
        images: ImageSources,
        question: str | None = None,
        rounds: int = 2,
        temperature: float = 0.0,
        seed: int | None = None,
        *,
        strict: bool = False,
        batch_size: int = 8,
        max_new_tokens: int | None = None,
    ) -> list[Assessment]:
        """Return one assessment per image, in order: words, boxes and rating.

        At temperature 0 answers are greedy. Above, they are sampled with the protocol's top-p and top-k, and `seed`
        makes them repeatable. strict: each image has its own batches. An unreadable answer gives `valid=False`,
        never an exception. Raises ImageError for an image that cannot be read.
        """
        sampling = sampling_of(self.protocol, temperature, seed, max_new_tokens)
        assessments = assess_images(
            self.checkpoint, load_ahead(images), question=question, rounds=rounds, sampling=sampling,
            strict=strict, batch_size=batch_size, retries=self.protocol.retries,
        )  # fmt: skip
        return [samples[0] for samples in assessments]

    @canonical
    def rate(
        self,
        images: ImageSources,
        mode: str = "direct",
        strict: bool = False,
        grad: bool = False,
        *,
        question: str | None = None,
        batch_size: int = 8,
        num_samples: int = 1,
        rounds: int = 2,
        temperature: float | None = None,
        seed: int | None = 0,
        max_new_tokens: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> Ratings:
        """Return ratings [batch] from 1 (bad) to 5 (excellent); NaN with `valid=False` if not measured.

        An image without content (`images.content`) is not valid in either mode; `errors` holds the reason.
        direct: mean and standard deviation of the distribution over rating tokens, over the views of the image. Not
        valid if ratings hold less than half of the probability. grad=True keeps the graph to the images, which must
        be tensors that require a gradient; gradient_checkpointing then recomputes activations in `backward`.
        reason: the number in the answer (std NaN). With `num_samples` above 1: mean and unbiased standard deviation of
        sampled answers; valid if more than half of them can be read. Sampling uses `temperature`, by default the
        protocol's (1 if that is greedy).
        strict: each image has its own forward passes, so its rating is bit-equal every time, beside any images, and so
        is its gradient (slower, with more memory).
        Tensors come back on the CPU, with grad=True on the model's device. Raises ImageError, ValueError.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        if gradient_checkpointing and not grad:
            raise ValueError("gradient_checkpointing needs grad=True; without a graph no activations are kept")
        if mode == "reason":
            if grad:
                raise ValueError("grad=True needs mode='direct': text has no gradient")
            return self._rate_reason(images, question, rounds, num_samples, temperature, seed, strict, batch_size,
                                     max_new_tokens)  # fmt: skip
        if num_samples != 1 or temperature is not None:
            raise ValueError("num_samples and temperature need mode='reason'; 'direct' does not sample")
        if grad:
            require_gradient(split_images(images))
        model = self.checkpoint.model
        graph = partial(graph_to_pixels, model, gradient_checkpointing=gradient_checkpointing, repeatable=strict)
        with graph() if grad else torch.no_grad():
            ratings = rate_direct(
                self.checkpoint, self.trie, load_ahead(images), question=question, strict=strict, batch_size=batch_size
            )
        home = ratings.mean.device if grad else torch.device("cpu")
        return Ratings(
            value=ratings.mean.to(home),
            std=ratings.std.to(home),
            valid=ratings.valid.to(home),
            std_kind="token",
            errors=ratings.errors,
        )

    def quality_map(
        self, image: ImageSource, *, view_px: int | None = None, strict: bool = False, grad: bool = False,
        batch_size: int = 8, question: str | None = None,
    ) -> "QualityMap":  # fmt: skip
        """Return where an image is good and bad: the ratings of overlapping views. See `model.quality_map`."""
        from zoomiqa_reward.model.quality_map import quality_map

        return quality_map(
            self, image, view_px=view_px, strict=strict, grad=grad, batch_size=batch_size, question=question
        )

    def compare(
        self, a: ImageSources, b: ImageSources, *, how: str = "ratings", temperature: float | None = None,
        question: str | None = None,
    ) -> "Comparison":  # fmt: skip
        """Return the probability that each image of `a` is better than the one of `b` at its place.

        a, b: one image each, or as many. p(a, b) + p(b, a) is 1 bit for bit and p(a, a) is 0.5. ratings: from both
        rating distributions of `direct`, each image read once. question: the model sees both in one prompt, in both
        orders; its protocol must have `pair`. temperature: sets how sure a difference makes; None: 0.12 for ratings,
        fitted to people for `nano` (`model.pairs.fit_temperature` fits others), 1 for the question.
        A pair with an image that cannot be measured is not valid. Raises ImageError, ValueError.
        """
        from zoomiqa_reward.model.pairs import compare

        return compare(self, a, b, how=how, temperature=temperature, question=question)

    def _rate_reason(
        self,
        images: ImageSources,
        question: str | None,
        rounds: int,
        num_samples: int,
        temperature: float | None,
        seed: int | None,
        strict: bool,
        batch_size: int,
        max_new_tokens: int | None,
    ) -> Ratings:
        temperature = samples_temperature(self.protocol, num_samples, temperature)
        groups = assess_images(
            self.checkpoint, load_ahead(images), question=question, rounds=rounds, num_samples=num_samples,
            sampling=sampling_of(self.protocol, temperature, seed, max_new_tokens), strict=strict,
            batch_size=batch_size, retries=self.protocol.retries,
        )  # fmt: skip
        pairs = [
            mean_and_std([assessment.rating for assessment in samples if assessment.valid], len(samples))
            for samples in groups
        ]
        mean = torch.tensor([mean for mean, _ in pairs], dtype=torch.float32)
        std = torch.tensor([std for _, std in pairs], dtype=torch.float32)
        answers = tuple(tuple(samples) for samples in groups)
        errors = tuple(
            next((assessment.error for assessment in samples if not assessment.valid), None)
            if math.isnan(value)
            else None
            for samples, (value, _) in zip(groups, pairs, strict=True)
        )
        return Ratings(value=mean, std=std, valid=~mean.isnan(), std_kind="samples", answers=answers, errors=errors)
