"""What learns, what it is held to and what is saved are one and the same model, on every way that leads there."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from test_rl_rollout import zooming_folder
from test_sft import ZOOM
from test_sft import config as sft_config
from tiny import ARCHS, RECURRENT, make_config, make_image, make_tokenizer, tiny_checkpoint

from train_iqa import sft
from train_iqa.rl.objective import AdapterOff, FrozenCopy
from train_iqa.rows.completions import answer_logprobs, collate_completions, complete
from train_iqa.training import policy
from train_iqa.training.learner import ModelConfig, load_base, make_accelerator, make_learner, optimizer_step
from train_iqa.training.policy import TuningConfig, answering
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.turns import round1


@torch.no_grad()
def logprobs(checkpoint, model=None):
    """Log-probabilities of one answer's tokens."""
    row = complete(checkpoint, round1(checkpoint.protocol, make_image(0, 224, 224)), ZOOM)
    values, _ = answer_logprobs(model or checkpoint.model, collate_completions(checkpoint, [row]))
    return values[0]


@pytest.mark.integration
@pytest.mark.parametrize("train_tower", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_an_adapter_on_top_of_another_is_saved_with_it(arch, train_tower, tmp_path, monkeypatch):
    """The base model with the second adapter alone lacks the first stage."""
    base, tuning = str(tiny_checkpoint(arch)), TuningConfig(lora_rank=4, lora_alpha=12, train_tower=train_tower)
    first = sft.train(sft_config(tmp_path, "first", model=ModelConfig(name=base, device="cpu"), tuning=tuning))
    learned = []
    save = policy.save_policy

    def note(checkpoint, accelerator, model, tuning, folder):
        learned.append(logprobs(checkpoint, accelerator.unwrap_model(model).eval()))
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")  # of an earlier save
        save(checkpoint, accelerator, model, tuning, folder)

    monkeypatch.setattr(sft, "save_policy", note)
    stacked = ModelConfig(name=base, adapter=str(first), device="cpu")
    second = sft.train(sft_config(tmp_path, "second", model=stacked, tuning=tuning))
    before = logprobs(load_checkpoint(base, device="cpu", adapter=first))
    after = logprobs(load_checkpoint(second, device="cpu"))
    torch.testing.assert_close(after, learned[0], rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01
    assert (before - logprobs(load_checkpoint(base, device="cpu"))).abs().max() > 0.01


def test_the_frozen_copy_is_the_model_as_it_is_loaded_in_its_type():
    """Rotary frequencies in bfloat16 would be other positions, and a KL that is not 0 before anything was learned."""
    checkpoint = load_checkpoint("nano", device="cpu")
    accelerator = make_accelerator(ModelConfig(device="cpu"))
    copied = FrozenCopy(accelerator, checkpoint.model, torch.bfloat16, offload=True)
    loaded = load_checkpoint("nano", device="cpu", dtype="bfloat16")
    with copied.active() as model:
        assert torch.equal(logprobs(checkpoint, model), logprobs(loaded))
    assert checkpoint.dtype == torch.float32


@pytest.fixture
def in_bfloat16(monkeypatch):
    """What `accelerate launch --mixed_precision bf16` sets."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
def test_the_reference_rounds_as_the_policy_does_in_mixed_precision(rank, in_bfloat16):
    """Else the KL is not 0 before anything was learned, and pulls the policy towards other rounding."""
    accelerator, checkpoint = make_accelerator(ModelConfig(device="cpu")), load_checkpoint(tiny_checkpoint())
    copied = FrozenCopy(accelerator, checkpoint.model, torch.float32, offload=False)
    exact = logprobs(checkpoint)
    tuning = TuningConfig(lora_rank=rank, lora_alpha=8)
    model, _ = make_learner(checkpoint, accelerator, tuning, weight_decay=0.0, seed=0)
    reference = copied if rank == 0 else AdapterOff(accelerator, model)
    policy_logprobs = logprobs(checkpoint, model)
    assert not torch.equal(policy_logprobs, exact)  # the policy does compute in bfloat16
    with reference.active() as frozen:
        assert torch.equal(logprobs(checkpoint, frozen), policy_logprobs)


def qwen2_vl(tokenizer):
    """A tiny Qwen2-VL, whose tower has other names."""
    from transformers import Qwen2VLConfig

    like = make_config("qwen2_5_vl", tokenizer)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters")  # fmt: skip
    text = {name: getattr(like.text_config, name) for name in names}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=like.image_token_id)


@pytest.mark.parametrize("train_tower", [False, True])
@pytest.mark.parametrize("arch", ["qwen2_vl", *ARCHS, RECURRENT])
def test_every_linear_layer_but_the_head_gets_lora(arch, train_tower):
    """Where names are forgotten, part of the model silently does not learn."""
    from transformers import AutoModelForImageTextToText

    tokenizer = make_tokenizer()
    config = qwen2_vl(tokenizer) if arch == "qwen2_vl" else make_config(arch, tokenizer)
    model = AutoModelForImageTextToText.from_config(config)
    wanted = {
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and (train_tower or "visual" not in name)
    }  # fmt: skip
    tuned = policy.make_trainable(model, TuningConfig(lora_rank=2, lora_alpha=4, train_tower=train_tower))
    learning = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in learning} == wanted
    assert any("visual" in name for name in wanted) == train_tower


def test_an_adapter_begins_as_its_seed_says_whatever_was_drawn_before():
    begun = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(begun))
        checkpoint, tuning = load_checkpoint(tiny_checkpoint()), TuningConfig(lora_rank=2, lora_alpha=4)
        accelerator = make_accelerator(ModelConfig(device="cpu"))
        model, _ = make_learner(checkpoint, accelerator, tuning, weight_decay=0.0, seed=seed)
        begun.append(torch.cat([one.detach().flatten() for one in policy.trained_parameters(model)]))
    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])


def sharded(device, prepare):
    return SimpleNamespace(
        device=torch.device(device), distributed_type=SimpleNamespace(value="DEEPSPEED"), prepare=prepare,
        unwrap_model=lambda model: model, autocast=nullcontext,
    )  # fmt: skip


def test_the_frozen_copy_answers_where_a_sharded_run_computes():
    """Its model is loaded on the CPU, to be sharded; the rows lie on the device of the process."""
    accelerator = sharded("meta", None)
    model = ModelConfig(name=str(tiny_checkpoint()))
    checkpoint = load_base(model, accelerator, TuningConfig(lora_rank=0))
    assert checkpoint.device.type == "cpu"
    copied = FrozenCopy(accelerator, checkpoint.model, torch.float32, offload=False)
    with copied.active() as reference:
        assert {parameter.device.type for parameter in reference.parameters()} == {"meta"}
    assert checkpoint.device.type == "cpu"


def test_buffers_are_not_rounded_by_what_prepares_the_model():
    """As DeepSpeed does in half precision; the loaded result would be asked with other positions."""
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    wanted = [buffer.clone() for buffer in checkpoint.model.buffers()]
    accelerator = sharded("cpu", lambda model, optimizer: (model.bfloat16(), optimizer))
    model, _ = make_learner(checkpoint, accelerator, TuningConfig(lora_rank=0), weight_decay=0.0, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(wanted) > 0
    for buffer, values in zip(model.buffers(), wanted, strict=True):
        assert torch.equal(buffer, values)
        assert buffer.dtype == values.dtype


def test_steps_of_any_number_of_parts_are_steps_on_their_sum():
    """By hand: the gradient of sum(w x) is the sum of the x, whatever the step before was cut into."""
    accelerator, generator = make_accelerator(ModelConfig(device="cpu")), torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    wanted = model.weight[0].detach().clone()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for count, rate in ((3, 0.1), (4, 0.2), (1, 0.3), (2, 0.4)):
        inputs = torch.randn(count, 3, generator=generator)
        parts = [lambda values=values: model(values).sum() for values in inputs]
        loss, norm = optimizer_step(accelerator, model, optimizer, parts, learning_rate=rate, max_norm=0.0)
        assert loss == pytest.approx(float((inputs @ wanted).sum()), abs=1e-5)
        assert norm == pytest.approx(float(inputs.sum(dim=0).norm()), rel=1e-5)
        wanted -= rate * inputs.sum(dim=0)
        torch.testing.assert_close(model.weight[0].detach(), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_no_weight(value):
    accelerator = make_accelerator(ModelConfig(device="cpu"))
    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    parts = [lambda: model(torch.ones(3)).sum(), lambda: model(torch.full((3,), value)).sum()]
    with pytest.raises(FloatingPointError, match="no weight was changed"):
        optimizer_step(accelerator, model, optimizer, parts, learning_rate=1.0, max_norm=1.0)
    assert torch.equal(model.weight, before)


def test_the_model_learns_in_training_mode_and_answers_in_eval_mode():
    """Dropout and the recomputation of activations act in training mode alone."""
    accelerator, checkpoint = make_accelerator(ModelConfig(device="cpu")), load_checkpoint(tiny_checkpoint())
    tuning = TuningConfig(lora_rank=2, lora_alpha=4, lora_dropout=0.5)
    model, _ = make_learner(checkpoint, accelerator, tuning, weight_decay=0.0, seed=0)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert any(module.p == 0.5 for module in dropouts)
    for _ in range(2):
        assert all(module.training for module in (model, *dropouts))
        with answering(checkpoint, accelerator, model) as asked:
            assert not any(module.training for module in asked.model.modules())
