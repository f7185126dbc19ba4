"""Loading: one code path for both architectures, adapters and protocols, and an error that helps for each mistake."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny import ARCHS, FORGETFUL_TEMPLATE, make_image, make_tiny_checkpoint, tiny_checkpoint, tiny_protocol, with_lora

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.model.checkpoint import OFFICIAL, CheckpointError, embedded, load_checkpoint
from zoomiqa_reward.model.direct import leaf_logprobs, trie_of
from zoomiqa_reward.model.fingerprint import fingerprint, fingerprint_parts, hash_folder
from zoomiqa_reward.model.inputs import PromptError, TokenRow, check_row, collate, make_row, render
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol.spec import PROTOCOL_FILE, ProtocolError


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "mine"))


def logprobs(checkpoint):
    row = make_row(checkpoint, round1(checkpoint.protocol, make_image()))
    with torch.no_grad():
        return leaf_logprobs(checkpoint, trie_of(checkpoint), [row])


def print_of(checkpoint):
    return fingerprint(fingerprint_parts(checkpoint))


def test_a_folder_loads_frozen_in_eval_mode_and_float32_on_the_cpu(arch):
    checkpoint = load_checkpoint(tiny_checkpoint(arch), device="cpu")
    assert checkpoint.name == arch
    assert checkpoint.model.config.model_type == arch
    assert not checkpoint.model.training
    assert {(p.dtype, p.requires_grad) for p in checkpoint.model.parameters()} == {(torch.float32, False)}
    assert checkpoint.protocol == tiny_protocol()
    assert checkpoint.tokenizer.padding_side == "left"


def test_half_precision_files_are_cast_up(tmp_path):
    half = make_tiny_checkpoint(tmp_path, dtype=torch.float16)
    assert load_checkpoint(half, device="cpu").dtype == torch.float32
    assert load_checkpoint(half, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="float32, bfloat16"):
        load_checkpoint(half, dtype="float23")


def test_an_unknown_name_lists_the_embedded_ones():
    with pytest.raises(CheckpointError, match="not embedded"):
        load_checkpoint("nanno")
    with pytest.raises(CheckpointError, match="no folder"):
        load_checkpoint("./no/such/folder")
    assert all(name.isidentifier() for name in embedded())


def test_a_hub_out_of_reach_is_said_so():
    with pytest.raises(CheckpointError, match="out of reach"):
        load_checkpoint("nobody-here/no-such-model", protocol=tiny_protocol())
    with pytest.raises(CheckpointError, match="out of reach"):
        load_checkpoint("nobody-here/no-such-model")


def test_the_official_model_without_protocol_says_how_to_get_one():
    with pytest.raises(CheckpointError, match=r"zoomiqa protocol import PATH.*protocol="):
        load_checkpoint(OFFICIAL)


def test_protocol_is_looked_up_explicitly_then_beside_the_weights(folder, tmp_path):
    other = tiny_protocol(name="other")
    assert load_checkpoint(folder, device="cpu", protocol=other).protocol == other
    file = other.save(tmp_path / "other.json")
    assert load_checkpoint(folder, device="cpu", protocol=file).protocol == other
    (folder / PROTOCOL_FILE).unlink()
    with pytest.raises(CheckpointError, match="how to ask it is unknown"):
        load_checkpoint(folder)
    (folder / PROTOCOL_FILE).write_text("{}")
    with pytest.raises(ProtocolError, match="format_version"):
        load_checkpoint(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin"):
        load_checkpoint(folder)


def test_a_text_model_is_refused(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'qwen2' is no vision-language model"):
        load_checkpoint(tmp_path, protocol=tiny_protocol())


def test_missing_weights_are_not_filled_with_random_ones(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layers.1.mlp" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        load_checkpoint(folder, device="cpu")


def test_an_image_processor_of_another_patch_size_is_refused(folder):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 16}))
    with pytest.raises(CheckpointError, match="does not fit a vision tower of 28 px"):
        load_checkpoint(folder, device="cpu")


def test_a_chat_template_in_the_older_file_is_found(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load_checkpoint(folder, device="cpu")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_checkpoint(folder, device="cpu").tokenizer.chat_template == template


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter that changes the model, without base weights."""
    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")
    wrapped = with_lora(checkpoint.model, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    expected = logprobs(checkpoint)  # the layers are inside the model now
    wrapped.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", expected


def test_an_adapter_is_merged_into_the_plain_model(adapter):
    place, expected = adapter
    plain = load_checkpoint(tiny_checkpoint(), device="cpu")
    merged = load_checkpoint(tiny_checkpoint(), device="cpu", adapter=place)
    assert type(merged.model) is type(plain.model)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    torch.testing.assert_close(logprobs(merged), expected, atol=1e-3, rtol=1e-4)
    assert (logprobs(plain) - expected).abs().max() > 0.1
    assert merged.name == "qwen2_5_vl+lora"
    assert print_of(merged) != print_of(plain)


def test_a_model_with_an_adapter_is_asked_as_the_adapter_was_trained(adapter, folder, tmp_path):
    place, _ = adapter
    assert load_checkpoint(folder, device="cpu", adapter=place).protocol.name == "tiny"  # the adapter brings none
    asked = shutil.copytree(place, tmp_path / "asked")
    tiny_protocol(name="of the adapter").save(asked)
    assert load_checkpoint(folder, device="cpu", adapter=asked).protocol.name == "of the adapter"
    given = tiny_protocol(name="given")
    assert load_checkpoint(folder, device="cpu", adapter=asked, protocol=given).protocol == given
    (folder / PROTOCOL_FILE).unlink()
    assert load_checkpoint(folder, device="cpu", adapter=asked).protocol.name == "of the adapter"


def test_an_adapter_without_safetensors_or_for_another_model_is_refused(adapter, tmp_path):
    place, _ = adapter
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_checkpoint(tiny_checkpoint(), device="cpu", adapter=tmp_path)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tiny_checkpoint(), device="cpu", adapter=place)


def test_fingerprint_follows_what_changes_the_rating_and_not_where_it_lies(folder):
    base = print_of(load_checkpoint(tiny_checkpoint(), device="cpu"))
    assert print_of(load_checkpoint(folder, device="cpu")) == base
    assert print_of(load_checkpoint(folder, device="cpu", dtype="bfloat16")) != base
    assert print_of(load_checkpoint(folder, device="cpu", attn_implementation="eager")) != base
    assert print_of(load_checkpoint(folder, device="cpu", protocol=tiny_protocol(name="b"))) != base
    make_tiny_checkpoint(folder, seed=5)
    assert print_of(load_checkpoint(folder, device="cpu")) != base


@pytest.mark.parametrize(("file", "old", "new", "part"), [
    ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.01', "config"),
    ("config.json", '"window_size": 56', '"window_size": 28', "config"),
    ("chat_template.jinja", "{% for message", "Be strict. {% for message", "chat_template"),
    ("tokenizer.json", '"individual_digits": true', '"individual_digits": false', "tokenizer"),
    ("generation_config.json", '"eos_token_id": ', '"eos_token_id": 1', "end_tokens"),
])  # fmt: skip
def test_files_beside_the_weights_are_in_the_fingerprint(folder, file, old, new, part):
    """The weights alone do not say what is computed with them, nor what the model is asked."""
    before = fingerprint_parts(load_checkpoint(folder, device="cpu"))
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))
    after = fingerprint_parts(load_checkpoint(folder, device="cpu"))
    assert {name for name in before if before[name] != after[name]} == {part}


def test_layers_may_be_offloaded_and_the_token_embeddings_not():
    text = "model.language_model"
    places = {f"{text}.layers": "disk", "lm_head": "disk"}
    places |= dict.fromkeys(("model.visual", f"{text}.embed_tokens", f"{text}.norm", f"{text}.rotary_emb"), "cpu")
    offloaded = load_checkpoint(tiny_checkpoint(), device="cpu", device_map=places)
    expected = logprobs(load_checkpoint(tiny_checkpoint(), device="cpu"))
    torch.testing.assert_close(logprobs(offloaded), expected, atol=1e-4, rtol=0)
    with pytest.raises(CheckpointError, match=r"leaves the token embeddings on no device.*embed_tokens"):
        load_checkpoint(tiny_checkpoint(), device="cpu", device_map={"": "disk"})


def test_a_file_that_was_exchanged_is_read_again_also_with_the_time_of_the_one_before(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before, written = hash_folder(tmp_path), weights.stat().st_mtime_ns
    weights.write_bytes(b"two")
    os.utime(weights, ns=(written, written))  # as `cp -p` and `rsync` do
    assert hash_folder(tmp_path) != before


def test_a_tokenizer_that_writes_otherwise_is_another():
    from tokenizers import normalizers

    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")
    before = print_of(checkpoint)
    checkpoint.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert print_of(checkpoint) != before


def test_asking_does_not_change_the_fingerprint():
    iqa = ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu")
    before = iqa.fingerprint_parts
    iqa.checkpoint.tokenizer(["a", "a b"], padding=True)
    iqa.assess(make_image(), max_new_tokens=3)
    iqa.rate(make_image())
    assert iqa.fingerprint_parts == before
    assert ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu").fingerprint_parts == before


def test_image_tokens_are_as_many_as_features_in_every_row(arch):
    checkpoint = load_checkpoint(tiny_checkpoint(arch), device="cpu")
    rows = [make_row(checkpoint, round1(checkpoint.protocol, make_image(height=h, width=90))) for h in (64, 150)]
    batch = collate(checkpoint, rows, append=[5, 6])
    features = batch["image_grid_thw"].prod(dim=-1) // 4
    assert batch["mm_token_type_ids"].sum(dim=1).tolist() == features.tolist()
    assert (batch["input_ids"] == checkpoint.image_token_id).sum(dim=1).tolist() == features.tolist()
    assert batch["input_ids"][:, -2:].tolist() == [[5, 6], [5, 6]]
    assert batch["attention_mask"][0, 0] == 0  # padded on the left


def test_a_row_with_a_lost_image_token_fails_loudly():
    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")
    row = make_row(checkpoint, round1(checkpoint.protocol, make_image()))
    place = int((row.input_ids == checkpoint.image_token_id).nonzero()[0])
    broken = torch.cat([row.input_ids[:place], row.input_ids[place + 1 :]])
    with pytest.raises(PromptError, match="image tokens"):
        check_row(
            checkpoint, TokenRow(input_ids=broken, pixel_values=row.pixel_values, image_grid_thw=row.image_grid_thw)
        )
    with pytest.raises(PromptError, match="2 image tokens for 1 images"):
        make_row(checkpoint, round1(checkpoint.protocol, make_image(), question="What is <|image_pad|>?"))


def test_a_template_that_forgets_reasoning_is_refused():
    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")
    prompted = round2(checkpoint.protocol, make_image(), make_image(1), "<think>soft</think><answer>{}</answer>")
    assert "<think>soft</think><answer>{}</answer>" in render(checkpoint, prompted.messages)
    checkpoint.tokenizer.chat_template = FORGETFUL_TEMPLATE
    with pytest.raises(PromptError, match="drops a part of round 1's answer"):
        render(checkpoint, prompted.messages)
