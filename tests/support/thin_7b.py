"""A thin Qwen2.5-VL-7B, and what a pass through it costs the host: what a GPU waits for, measured without one.

All 32 vision blocks and 28 language layers of the real model stand there, 64 wide and with random weights, so that
the arithmetic is small and every call that the host makes is there. `counted` counts these calls: operators by torch's
profiler, and synchronisations, which stop a GPU until the host has read a value.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from zoomiqa_reward.model.checkpoint import Checkpoint, load_checkpoint
from zoomiqa_reward.protocol.spec import ViewPolicy

SIDES = (756, 1008)
"""Height and width of the image that is read: about KonIQ-10k's; 972 image tokens."""
SMALL_SIDES, SMALL_WINDOW = (364, 504), 56
"""With windows of 56 px this size has as many windows as `SIDES`, partial ones too, so the host makes the same calls,
with a quarter of the arithmetic in blocks of windows and a seventeenth in the others: what is left is host time."""
LEAST_SIDES, LEAST = (196, 252), {"window_size": 28, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1}
"""As many windows, of one token each and so none partial, in a tower 8 wide: hardly any arithmetic is left."""
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 28, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip


def thin_7b(device: str = "cpu", **vision: Any) -> Checkpoint:
    """Return the thin model in float32; `vision` holds other values of the vision tower's config."""
    checkpoint = random_checkpoint("thin 7B", TEXT, VISION | vision)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in checkpoint.model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 is so small at this width that attention sees nothing
                torch.nn.init.normal_(parameter, std=0.1)
    return replace(checkpoint, model=checkpoint.model.to(device))


def random_checkpoint(
    name: str, text: Mapping[str, Any], vision: Mapping[str, Any], *, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:  # fmt: skip
    """Return a Qwen2.5-VL of random weights with nano's tokenizer and prompts; it reads an image once, whole."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    nano = load_checkpoint("nano", device="cpu")
    own = nano.model.config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    names = names if "vocab_size" in text else (*names, "vocab_size")
    kinds = [f"{kind}_token_id" for kind in ("image", "video", "vision_start", "vision_end")]
    config = Qwen2_5_VLConfig(
        text_config={**text, **{name: getattr(own.text_config, name) for name in names}}, vision_config=dict(vision),
        tie_word_embeddings=False, **{name: getattr(own, name) for name in kinds},
    )  # fmt: skip
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    protocol = replace(nano.protocol, views=ViewPolicy.whole(), max_pixels=1003520)
    return replace(nano, name=name, model=model.eval().requires_grad_(False), protocol=protocol)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one call cost the host."""

    operators: int
    """Operators that Python called (torch's profiler; not those that another operator calls)."""
    attentions: int
    """Calls of scaled dot product attention among them."""
    synchronisations: int
    """Values that the host read from a tensor, and results whose size depends on values. Tensors that a GPU run keeps
    on the host are counted as well, so this is an upper bound."""
    seconds: float
    """Host time of the fastest of three further calls, without profiler."""
    reads: dict[str, int]
    """The synchronisations by name."""


def counted(call: Callable[[], Any], *, repeats: int = 3) -> Counts:
    """Return what `call` costs; it runs `repeats` + 3 times, first once to warm up."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    called = [event.name for event in profiler.events() if event.name.startswith("aten::") and _is_outer(event)]
    with Reads() as reads:
        call()
    seconds = []
    for _ in range(repeats):
        began = time.thread_time()
        call()
        seconds.append(time.thread_time() - began)
    return Counts(
        operators=len(called), attentions=called.count("aten::scaled_dot_product_attention"),
        synchronisations=reads.names.total(), seconds=min(seconds, default=0.0), reads=dict(reads.names),
    )  # fmt: skip


def _is_outer(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return False
        parent = parent.cpu_parent
    return True


class Reads(TorchFunctionMode):
    """Counts what would stop a GPU until the host has read a value."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READING or _depends_on_values(func, args, kwargs):
            self.names[getattr(func, "__name__", str(func))] += 1
        return func(*args, **kwargs)


_READING = frozenset({
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__, Tensor.__contains__, torch.nonzero, Tensor.nonzero, torch.equal, Tensor.equal, torch.allclose,
    torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique, torch.unique_consecutive,
    Tensor.unique_consecutive, torch.argwhere, torch.is_nonzero,
})  # fmt: skip


def _depends_on_values(func: Any, args: Any, kwargs: Any) -> bool:
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in places)
    if func in (torch.repeat_interleave, Tensor.repeat_interleave):
        counts = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        return isinstance(counts, Tensor) and kwargs.get("output_size") is None
    if func in (torch.where, Tensor.where):
        return len(args) == 1 and not kwargs
    return False
