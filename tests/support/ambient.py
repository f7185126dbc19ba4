"""Everything that a caller may have switched on around a measurement, each as a context manager by name."""

import contextlib

import torch

from zoomiqa_reward.model.numerics import SETTINGS


def changed(read, write, value):
    @contextlib.contextmanager
    def inside():
        before, settings = read(), [(one, one.now()) for one in SETTINGS]
        write(value)
        try:
            yield
        finally:
            write(before)
            for one, was in settings:  # old names write several new ones
                if one.now() != was:
                    one.write(was)

    return inside


def flag(owner, name, value):
    return changed(lambda: getattr(owner, name), lambda one: setattr(owner, name, one), value)


def deterministic(value):
    torch.use_deterministic_algorithms(value, warn_only=value)


AMBIENT = {
    "autocast_bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", torch.float16),
    "default_float64": changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default_bfloat16": changed(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "default_float16": changed(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "default_device_meta": lambda: torch.device("meta"),
    "matmul_medium": changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "matmul_bfloat16": flag(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "conv_bfloat16": flag(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "all_tf32": flag(torch.backends, "fp32_precision", "tf32"),
    "no_mkldnn": changed(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False),
    "no_flash": changed(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False),
    "deterministic": changed(torch.are_deterministic_algorithms_enabled, deterministic, True),
    "flush_denormal": changed(lambda: False, torch.set_flush_denormal, True),
    "inference_mode": torch.inference_mode,
}
