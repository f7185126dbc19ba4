"""Tiny real checkpoints, built without network: random or briefly taught Qwen-VL models with a tokenizer of their own.

`make_tiny_checkpoint(folder, arch)` writes one; `tiny_checkpoint(arch)` is a taught one, made once in a process: a
random model puts hardly any probability on ratings, so that nothing that it says would be valid.
"""

import atexit
import functools
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from zoomiqa_reward.protocol.spec import Decoding, Prompt, Protocol, ViewPolicy

ARCHS = ("qwen2_5_vl", "qwen3_vl")
RECURRENT = "qwen3_5"
"""Hybrid of linear and full attention: read one row per inner node, so it is no member of ARCHS."""
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CORPUS = [
    "How good is this image? Rate it from 1.00 to 5.00.",
    '<think>Image Quality Summary: soft. Decision & Rationale: look closer.</think><answer>{"bbox_2d": [0.1, 0.2, '
    '0.5, 0.6], "rating": 3.25, "tool": "crop"}</answer>',
    "Original image: Cropped Image: quality sharpness noise blur colour",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL_TEMPLATE = TEMPLATE.replace("{{ item.text }}", "{{ item.text.split('</think>')[-1] }}")
"""Drops the reasoning of earlier turns, as some newer chat templates do."""


def tiny_protocol(**changes: object) -> Protocol:
    fields: dict[str, object] = {
        "name": "tiny",
        "round1": Prompt(text="{question} Answer with {{}}."),
        "round2": Prompt(text="{question} Look again.", style="verbatim"),
        "questions": ("How good is this image?",),
        "direct_prefix": '<answer>{"rating": ',
        "views": ViewPolicy(scales=(1.0, 0.5), weights=(0.5, 0.2), whole_weight=0.3, tile_px=64, min_side_px=56),
        "decoding": Decoding(max_new_tokens=8),
        "min_pixels": 3136,
        "max_pixels": 20000,
    }
    return Protocol(**(fields | changes))  # type: ignore[arg-type]


def make_tokenizer(merged_numbers: tuple[str, ...] = ()):
    """Return a byte-level BPE tokenizer with the Qwen special tokens; `merged_numbers` become tokens of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(number, normalized=False) for number in merged_numbers])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False, model_max_length=100_000,
    )  # fmt: skip


def make_config(arch: str, tokenizer):
    from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
        )
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    if arch == "qwen2_5_vl":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        vision |= {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    del text["bos_token_id"], text["eos_token_id"]
    text |= {"head_dim": 8}
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
    }  # fmt: skip
    vision |= {"patch_size": 16, "num_position_embeddings": 16}
    if arch == RECURRENT:
        text["rope_parameters"] |= {"partial_rotary_factor": 1.0}
        text |= {
            "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        }  # fmt: skip
        return Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    vision["deepstack_visual_indexes"] = [0]
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def make_tiny_checkpoint(
    folder: str | os.PathLike[str],
    arch: str = "qwen2_5_vl",
    seed: int = 0,
    *,
    protocol: Protocol | None = None,
    lessons: int = 0,
    rate: float = 5e-3,
    words: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a tiny checkpoint into `folder` and return it; `lessons` > 0 teaches it to answer with ratings.

    words: tokens of their own, beside those of the corpus.
    """
    from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(words)
    config = make_config(arch, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():  # the usual 0.02 is so small at this width that attention sees nothing
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    Qwen2VLImageProcessor(patch_size=config.vision_config.patch_size).save_pretrained(target)
    (protocol or tiny_protocol()).save(target)
    if lessons:
        _teach(target, lessons, seed, rate)
    if dtype != torch.float32:
        model = AutoModelForImageTextToText.from_pretrained(target, dtype=dtype)
        model.save_pretrained(target)
    return target


@torch.enable_grad()  # the first test that asks for the checkpoint may run without gradients
def _teach(folder: Path, lessons: int, seed: int, rate: float) -> None:
    """Teach the model to put its probability on ratings, higher ones for brighter images."""
    from zoomiqa_reward.model.checkpoint import load_checkpoint
    from zoomiqa_reward.model.direct import leaf_logprobs, summarise, trie_of
    from zoomiqa_reward.model.inputs import make_row
    from zoomiqa_reward.model.turns import round1

    checkpoint = load_checkpoint(folder, device="cpu")
    trie, model = trie_of(checkpoint), checkpoint.model
    sizes = [(56, 56), (64, 84), (112, 64), (64, 128), (84, 84), (128, 112)]  # or it rates images of one size only
    images = [make_image(seed + index, *size) * (index + 1) / 6 for index, size in enumerate(sizes)]
    rows = [make_row(checkpoint, round1(checkpoint.protocol, image)) for image in images]
    targets = torch.tensor([1.5 + 0.5 * index for index in range(6)])
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(lessons):
        logprobs = leaf_logprobs(checkpoint, trie, rows)
        mass = torch.logsumexp(logprobs, dim=-1)
        mean = summarise(logprobs - mass[:, None], trie.ratings).mean
        loss = -mass.mean() + (mean - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@functools.cache
def tiny_checkpoint(arch: str = "qwen2_5_vl") -> Path:
    """Return the folder of a taught tiny checkpoint, made once in this process; do not write into it."""
    root = tempfile.mkdtemp(prefix="tiny-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return make_tiny_checkpoint(Path(root) / arch, arch, lessons=40)


@functools.cache
def tiny_iqa(arch: str = "qwen2_5_vl"):
    """Return the taught tiny model as a ZoomIQA on the CPU."""
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

    return ZoomIQA.from_pretrained(tiny_checkpoint(arch), device="cpu")


def with_lora(model: torch.nn.Module, **options: object):
    """Return the model with LoRA layers in it that change what it says, in eval mode, wrapped by peft."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**({"r": 2, "init_lora_weights": False} | options))  # type: ignore[arg-type]
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft's own use of an older name of transformers
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(1)
        return get_peft_model(model, config).eval()


def make_image(seed: int = 0, height: int = 70, width: int = 90) -> Tensor:
    """Return a float32 CHW image in [0, 1] with coarse and fine structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (0.8 * smooth + 0.2 * torch.rand(3, height, width, generator=generator)).clamp(0, 1)
