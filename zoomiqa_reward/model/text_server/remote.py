"""`RemoteZoomIQA`: the surface of `ZoomIQA` where the model answers over HTTP. Rounds, crops and reading are the same.

Its ratings are not bit-equal to local ones: the server reads 8-bit images by its own processor, in its own dtype
and batches. The fingerprint names server, model and protocol; what weights stand behind that name it cannot see.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from zoomiqa_reward.images.content import RULE, contentless
from zoomiqa_reward.images.loading import ImageSources, load_each
from zoomiqa_reward.model.decoding import MODES, mean_and_std, samples_temperature, sampling_of
from zoomiqa_reward.model.direct import MIN_MASS
from zoomiqa_reward.model.fingerprint import fingerprint
from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.inputs import PromptError
from zoomiqa_reward.model.ratings import Assessment, Ratings
from zoomiqa_reward.model.reason import assess_batch, check_rounds
from zoomiqa_reward.model.text_server.client import RequestFailed, ServerOptions, TextServer, parallel_map
from zoomiqa_reward.model.text_server.direct import read_direct
from zoomiqa_reward.model.text_server.local_server import folder_of
from zoomiqa_reward.model.text_server.replies import chat_messages, resize_to_budget
from zoomiqa_reward.model.text_server.spread import spread_in_answer
from zoomiqa_reward.model.turns import Prompted
from zoomiqa_reward.model.views import VIEWS_RULE
from zoomiqa_reward.protocol.spec import PROTOCOL_FILE, Protocol, ProtocolError
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest


class RemoteOptions(ServerOptions, total=False):
    """The options of `RemoteZoomIQA.from_server`."""

    api_key: str | None
    protocol: str | PathLike[str] | Protocol | None
    concurrency: int
    factor_px: int | None
    revision: str | None
    tolerance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteZoomIQA:
    """A Zoom-IQA model behind a text server. Build it with `from_server`; use it as a context manager or `close()` it.

    An image whose request failed, after its retries, is NaN with `valid=False` and the reason. What would fail for
    every image (key, model name, something that the server does not offer) is raised.
    """

    server: TextServer
    protocol: Protocol
    concurrency: int
    factor_px: int | None
    revision: str | None
    tolerance: float

    @classmethod
    def from_server(
        cls,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        protocol: str | PathLike[str] | Protocol | None = None,
        concurrency: int = 4,
        factor_px: int | None = None,
        revision: str | None = None,
        tolerance: float = 0.05,
        **options: Unpack[ServerOptions],
    ) -> "RemoteZoomIQA":
        """Return the model that the server calls `model`; nothing is sent yet.

        protocol: a path, an embedded model's name or a Protocol; by default the one in the folder that `model` names,
        if it is a folder here as well. concurrency: images asked about at once.
        factor_px: patch x merge of the served model (28 for Qwen2.5-VL, 32 for Qwen3-VL); if given, images are
        resized here, to the protocol's pixel budget, before they are sent; otherwise they are sent as they are and
        the server resizes. Mode `direct` needs it for its views.
        revision: what is known of the served weights, for the fingerprint.
        tolerance: how far, in ratings, the mean of `direct` may be off because branches of the tree were not asked.
        options: timeout_s, max_retries, top_logprobs, think_join, extra; see `client.TextServer`.
        Raises ProtocolError, ValueError.
        """
        if concurrency < 1 or (factor_px is not None and factor_px < 1):
            raise ValueError(f"concurrency={concurrency}, factor_px={factor_px}: both must be at least 1")
        if not 0 < tolerance <= 0.5:
            raise ValueError(f"tolerance={tolerance}: must be in (0, 0.5]")
        return cls(
            server=TextServer(base_url, model, api_key=api_key, **options), protocol=_protocol(protocol, model),
            concurrency=concurrency, factor_px=factor_px, revision=revision, tolerance=tolerance,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The model's short name."""
        return Path(self.server.model).name

    @property
    def differentiable(self) -> bool:
        """False: text comes back over HTTP, without a graph."""
        return False

    @property
    def fingerprint_parts(self) -> dict[str, object]:
        """What the fingerprint is made of; no key or password."""
        return {
            "server": self.server.address,
            "model": self.server.model,
            "revision": self.revision,
            "protocol": self.protocol.fingerprint,
            "factor_px": self.factor_px,
            "tolerance": self.tolerance,
            "top_logprobs": self.server.top_logprobs,
            "think_join": self.server.think_join,
            "extra": self.server.extra,
            "content_rule": RULE,
            "views_rule": VIEWS_RULE,
            **({"subclass": state_digest(*added)} if (added := added_by_subclass(self, RemoteZoomIQA)) else {}),
        }

    @property
    def fingerprint(self) -> str:
        """16 hex digits of server, model, protocol and the ways of asking; other weights under that name go unseen."""
        return fingerprint(self.fingerprint_parts)

    @property
    def identity(self) -> dict[str, object]:
        """The name and what the fingerprint is made of."""
        return {"name": self.name, **self.fingerprint_parts}

    def __enter__(self) -> "RemoteZoomIQA":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

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
        """Return one assessment per image, in order, as `ZoomIQA.assess` does.

        `std` and `spread` come from the log-probabilities of the rating's tokens, where the server tells them. strict
        and batch_size change nothing: each request holds one image, and the server batches as it likes.
        Raises ImageError for an image that cannot be read; ServerRefused.
        """
        check_rounds(rounds)
        _refuse_levels(self.protocol)
        sampling = sampling_of(self.protocol, temperature, seed, max_new_tokens)
        ask = partial(self._assess_one, question=question, rounds=rounds, sampling=sampling)
        return parallel_map(ask, load_each(images), self.concurrency)

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
    ) -> Ratings:
        """Return the ratings [batch] of images, as `ZoomIQA.rate` does; `errors` says why one could not be measured.

        reason: the number that the answer names. std_kind is `token` where the server tells log-probabilities (std at
        the rating's tokens, NaN for an answer where they hold too little mass), else `none` with NaN; over several
        samples it is `samples`.
        direct: mean and deviation of the distribution after the protocol's `direct_prefix`, as `direct.read_tree`
        finds it; needs a server that continues an answer, and factor_px.
        Raises ImageError, ValueError, ServerRefused, NotOffered.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        if grad:
            raise ValueError("grad=True: a text server gives no gradients; load the model itself")
        _refuse_levels(self.protocol)
        if mode == "reason":
            check_rounds(rounds)
            temperature = samples_temperature(self.protocol, num_samples, temperature)
            sampling = sampling_of(self.protocol, temperature, seed, max_new_tokens)
            return self._rate_reason(images, question, rounds, num_samples, sampling)
        if num_samples != 1 or temperature is not None:
            raise ValueError("num_samples and temperature need mode='reason'; 'direct' does not sample")
        if self.factor_px is None:
            raise ValueError("mode='direct' cuts views: pass factor_px=28 (Qwen2.5-VL) or 32 (Qwen3-VL) to from_server")
        spreads = parallel_map(partial(self._direct_one, question=question), load_each(images), self.concurrency)
        mean, std = (torch.tensor([spread[k] for spread in spreads], dtype=torch.float32) for k in (0, 1))
        return Ratings(
            value=mean,
            std=std,
            valid=~mean.isnan(),
            std_kind="token",
            errors=tuple(spread[2] for spread in spreads),
            tolerance=self.tolerance / min((spread[3] for spread in spreads if spread[2] is None), default=1.0),
        )

    def _rate_reason(
        self, images: ImageSources, question: str | None, rounds: int, num_samples: int, sampling: Sampling
    ) -> Ratings:
        seed = _one_seed(sampling)
        draws = [
            sampling if seed is None else replace(sampling, seed=seed + 2 * k)
            for k in range(num_samples)  # 2: round 2 takes the next seed
        ]
        tasks = ((image, draw) for image in load_each(images) for draw in draws)
        flat = parallel_map(lambda task: self._assess_one(task[0], question, rounds, task[1]), tasks, self.concurrency)
        groups = [tuple(flat[start : start + num_samples]) for start in range(0, len(flat), num_samples)]
        errors = tuple(
            next((assessment.error for assessment in samples if not assessment.valid), None) for samples in groups
        )
        if num_samples == 1:
            mean, std = [assessment.rating for assessment in flat], [assessment.std for assessment in flat]
            kind = "none" if all(map(math.isnan, std)) else "token"
        else:
            _warn_of_copies(groups)
            pairs = [
                mean_and_std([assessment.rating for assessment in samples if assessment.valid], num_samples)
                for samples in groups
            ]
            mean, std, kind = [pair[0] for pair in pairs], [pair[1] for pair in pairs], "samples"
            errors = tuple(error if math.isnan(value) else None for error, value in zip(errors, mean, strict=True))
        value = torch.tensor(mean, dtype=torch.float32)
        return Ratings(
            value=value, std=torch.tensor(std, dtype=torch.float32), valid=~value.isnan(), std_kind=kind,
            errors=errors, answers=tuple(groups),
        )  # fmt: skip

    def _assess_one(self, image: Tensor, question: str | None, rounds: int, sampling: Sampling) -> Assessment:
        assessments = assess_batch(
            self.protocol, [image], self._respond, question=question, rounds=rounds, sampling=sampling,
            retries=self.protocol.retries,
        )  # fmt: skip
        return assessments[0]

    def _respond(self, asked: Sequence[Prompted], sampling: Sampling) -> list[Completion]:
        seeds = sampling.seed if isinstance(sampling.seed, tuple) else (sampling.seed,) * len(asked)
        return [
            self._complete(prompted, replace(sampling, seed=seed)) for prompted, seed in zip(asked, seeds, strict=True)
        ]

    def _complete(self, prompted: Prompted, sampling: Sampling) -> Completion:
        images = tuple(resize_to_budget(image, self.protocol, self.factor_px) for image in prompted.images)
        try:
            reply = self.server.ask(
                chat_messages(replace(prompted, images=images)), start=prompted.start,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, seed=_one_seed(sampling),
            )  # fmt: skip
        except (RequestFailed, PromptError) as error:
            return Completion(text="", is_truncated=False, failure=str(error))
        spread = None if reply.tokens is None else spread_in_answer(reply.tokens, reply.text)
        return Completion(text=reply.text, is_truncated=reply.is_truncated, spread=spread)

    def _direct_one(self, image: Tensor, question: str | None) -> tuple[float, float, str | None, float]:
        """Return mean, deviation, why there are none, and the mass that both were divided by."""
        assert self.factor_px is not None
        if why := contentless(image):
            return math.nan, math.nan, why, math.nan
        try:
            spread = read_direct(
                self.server, self.protocol, image, factor_px=self.factor_px, question=question,
                tolerance=self.tolerance,
            )  # fmt: skip
        except (RequestFailed, PromptError) as error:
            return math.nan, math.nan, str(error), math.nan
        if spread.mass < MIN_MASS:
            why = (
                f"the ratings hold {spread.mass:.2f} of the probability after the start of the answer, at least "
                f"{MIN_MASS} is needed: the model was about to say something else, or the server ignored the start"
            )
            return math.nan, math.nan, why, spread.mass
        return spread.mean, spread.std, None, spread.mass


def _protocol(given: str | PathLike[str] | Protocol | None, model: str) -> Protocol:
    if isinstance(given, Protocol):
        return given
    if given is not None:
        return Protocol.load(folder_of(given) or given)
    folder = folder_of(model)
    if folder is None or not (folder / PROTOCOL_FILE).is_file():
        raise ProtocolError(
            f"how to ask the served model {model!r} is unknown: pass protocol= (a {PROTOCOL_FILE}, the folder that "
            "holds it, or an embedded model's name)"
        )
    return Protocol.load(folder)


def _refuse_levels(protocol: Protocol) -> None:
    if protocol.levels:
        raise ValueError(
            f"protocol {protocol.name!r}: level words are read from a model in this process only; "
            "use ZoomIQA.from_pretrained"
        )


def _warn_of_copies(groups: Sequence[Sequence[Assessment]]) -> None:
    """Say so where all samples of all images are copies: a spread of 0 would be the server's doing."""
    texts = [{tuple(turn.text for turn in assessment.turns) for assessment in samples} for samples in groups]
    if texts and all(len(assessment) == 1 and () not in assessment for assessment in texts):
        warnings.warn(
            "all samples of an image are the same text, for every image: the server seems to answer greedily whatever "
            """the temperature; for `transformers serve` pass extra={"generation_config": '{"do_sample": true}'}""",
            stacklevel=4,
        )


def _one_seed(sampling: Sampling) -> int | None:
    assert not isinstance(sampling.seed, tuple)  # a tuple is for rows that a model of this process answers together
    return sampling.seed
