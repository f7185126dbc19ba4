"""Devices by name: told before the work whether this machine has one, in words that say what to give instead."""

import torch


def half_autocast(device: torch.device) -> torch.autocast:
    """Return a context that trains in bfloat16 on a GPU; on a CPU only inside a caller's own autocast.

    Many CPUs have no bfloat16 arithmetic and emulate it: a matrix product then takes many times as long. On those that
    have it (avx512_bf16) a product takes a fifth of the time.

    >>> with half_autocast(torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    enabled = device.type != "cpu" or torch.is_autocast_enabled("cpu")
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name, of the process's accelerator or the CPU where it is None.

    Raises ValueError for a name that torch does not know, and for a device that this machine does not have.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: no such kind; give cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        has = f"cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "no CUDA device"
        raise ValueError(f"device {str(device)!r}: torch cannot use it here ({has}); give another, or cpu") from error
    return resolved
