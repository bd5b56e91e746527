"""Which device and which number format a stage uses."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params import ComputeParams


def prepare_device(compute: ComputeParams) -> torch.device:
    """Return the device that `compute.device` means on this machine, and give torch the stated number of threads.

    Raises:
        InputError: the named device is not here.
    """
    if compute.n_threads is not None:
        torch.set_num_threads(compute.n_threads)
    name = compute.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = name.partition(":")
    if not is_here[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name!r} is not on this machine (torch {torch.__version__}): set device to auto or cpu"
        )
    return torch.device(name)


def autocast(compute: ComputeParams, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a forward pass; `auto` is bf16 on GPUs that have it and float32 elsewhere."""
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    is_bf16 = compute.precision == "bf16" or (compute.precision == "auto" and is_native)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)
