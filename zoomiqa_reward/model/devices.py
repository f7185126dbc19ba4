"""Devices by name: told before the work whether this machine has one, in words that say what to give instead."""

import torch


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
