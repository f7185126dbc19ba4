"""Real diffusers super-resolution pipelines at toy size with random weights, built without network.

Their images mean nothing; shapes, random numbers, arguments and padding are those of the real classes.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tiny import make_tokenizer

WIDE = 8
TEXT = 32
MAX_TOKENS = 16


def _seeded(build):
    """Return the builder with weights that are the same at each call, and no seed left behind."""

    def built(**options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(**options)

    return built


def _text(tokens=MAX_TOKENS):
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer()
    tokenizer.model_max_length = tokens
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokens, projection_dim=TEXT, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config).eval()}


def _vae(blocks, **options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[WIDE] * blocks, down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks, norm_num_groups=4, latent_channels=4, **options,
    ).eval()  # fmt: skip


def _unet(**options):
    from diffusers import UNet2DConditionModel

    fields = {
        "block_out_channels": (WIDE, 2 * WIDE), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": TEXT,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**(fields | options)).eval()


@_seeded
def ldm(**options):
    """LDMSuperResolutionPipeline, x4."""
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    unet = UNet2DModel(
        in_channels=6, out_channels=3, block_out_channels=(WIDE, 2 * WIDE), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    vqvae = VQModel(
        block_out_channels=[WIDE] * 3, down_block_types=["DownEncoderBlock2D"] * 3, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 3, latent_channels=3, num_vq_embeddings=16,
    ).eval()  # fmt: skip
    return LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler())


@_seeded
def sd_x4():
    """StableDiffusionUpscalePipeline, x4."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline

    return StableDiffusionUpscalePipeline(
        vae=_vae(3, scaling_factor=0.08333), unet=_unet(in_channels=7, out_channels=4, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(), scheduler=DDIMScheduler(prediction_type="v_prediction"), **_text(),
    )  # fmt: skip


@_seeded
def latent_x2():
    """StableDiffusionLatentUpscalePipeline, x2."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionLatentUpscalePipeline

    unet = _unet(
        in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), act_fn="gelu", norm_num_groups=None,
        attention_head_dim=8, time_cond_proj_dim=128 + TEXT, conv_in_kernel=1, conv_out_kernel=1, mid_block_type=None,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3), resnet_time_scale_shift="scale_shift",
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"), time_embedding_type="fourier",
        timestep_post_act="gelu",
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(prediction_type="sample")
    return StableDiffusionLatentUpscalePipeline(vae=_vae(3), unet=unet, scheduler=scheduler, **_text())


@_seeded
def controlnet():
    """StableDiffusionControlNetImg2ImgPipeline: as large as its input."""
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetImg2ImgPipeline

    control = ControlNetModel(
        block_out_channels=(WIDE, 2 * WIDE), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=TEXT,
        conditioning_embedding_out_channels=(4, 8),
    ).eval()  # fmt: skip
    for parameter in control.parameters():  # its last layers start at zero: the control image would do nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return StableDiffusionControlNetImg2ImgPipeline(
        vae=_vae(2), unet=_unet(in_channels=4, out_channels=4), controlnet=control, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **_text(),
    )  # fmt: skip


def _t5(width):
    from transformers import T5Config, T5EncoderModel

    tokenizer = make_tokenizer()
    tokenizer.model_max_length = MAX_TOKENS
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def _flux_parts(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    fields = {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": TEXT, "pooled_projection_dim": TEXT,
        "axes_dims_rope": [4, 4, 8], "guidance_embeds": False,
    }  # fmt: skip
    tokenizer, encoder = _t5(TEXT)
    return fields, {
        "scheduler": FlowMatchEulerDiscreteScheduler(), "vae": _vae(2, shift_factor=0.0, scaling_factor=1.0),
        "transformer": FluxTransformer2DModel(**fields).eval(), "tokenizer_2": tokenizer, "text_encoder_2": encoder,
    } | _text()  # fmt: skip


@_seeded
def flux_kontext():
    """FluxKontextPipeline, an edit model: chooses a size of its own unless told."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_flux_parts()[1])


@_seeded
def flux_controlnet():
    """FluxControlNetPipeline: takes `control_image` alone."""
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    fields, parts = _flux_parts()
    return FluxControlNetPipeline(controlnet=FluxControlNetModel(**fields).eval(), **parts)


@_seeded
def sd3_controlnet():
    """StableDiffusion3ControlNetPipeline: takes `control_image` alone."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3ControlNetModel,
        SD3Transformer2DModel,
        StableDiffusion3ControlNetPipeline,
    )
    from transformers import CLIPTextModelWithProjection

    fields = {
        "sample_size": 32, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": TEXT,
        "joint_attention_dim": 2 * TEXT, "pooled_projection_dim": 2 * TEXT, "pos_embed_max_size": 96,
    }  # fmt: skip
    text, (tokenizer, encoder) = {}, _t5(2 * TEXT)
    for suffix in ("", "_2"):
        clip = _text(tokens=77)  # the pipeline pads to 77, whatever the tokenizer says
        config = clip["text_encoder"].config
        text[f"tokenizer{suffix}"] = clip["tokenizer"]
        text[f"text_encoder{suffix}"] = CLIPTextModelWithProjection(config).eval()
    return StableDiffusion3ControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(2, shift_factor=0.0, scaling_factor=1.0),
        transformer=SD3Transformer2DModel(**fields).eval(), controlnet=SD3ControlNetModel(**fields).eval(),
        tokenizer_3=tokenizer, text_encoder_3=encoder, **text,
    )  # fmt: skip


@_seeded
def small_nano():
    """The embedded pipeline's class, x4, untrained."""
    from restoration.nano.pipeline import NanoSRPipeline, build_scheduler, build_unet

    return NanoSRPipeline(build_unet(channels=(16, 32), layers=1).eval(), build_scheduler())


@_seeded
def convolutions(*, scale=2, layers=3):
    """A small convolutional network, `scale` times larger; sees `layers` pixels to each side."""
    from torch import nn

    body = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(layers - 2)]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), *body, nn.Conv2d(8, 3 * scale**2, 3, padding=1),
        nn.PixelShuffle(scale), nn.Sigmoid(),
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network
