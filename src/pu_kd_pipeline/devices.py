"""Which device and which number format a stage uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.compute import ComputeParams

Network = TypeVar("Network", bound=nn.Module)


class MemoryShortage(InputError):
    """A device, or the machine, has too little memory: a fault of the moment, which smaller batches may mend."""


# Values of the images in one batch of inference. A CPU is twice as fast where a layer's output stays in its caches and
# in memory that the process keeps (docs/results/speed.md); a GPU wants enough of them to be busy.
_VALUES_ON_CPU, _VALUES_ELSEWHERE = 2**19, 2**23
_FEWEST, _MOST = 8, 1024


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
    is_here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind, _, index = name.partition(":")
    if not is_here[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name!r} is not on this machine (torch {torch.__version__}): set device to auto or cpu"
        )
    return torch.device(name)


def channels_last(network: Network, device: torch.device) -> Network:
    """Return a network on a device, in place, with the weights of its convolutions ordered channels last.

    Color images have that order (`learning.augmentation.Normalize`) and take the network along; gray ones have none,
    and on a CPU LeNet-5 trains 1.7 times as fast in this one (docs/results/speed.md). Not on Apple's GPUs, as there.
    """
    network = network.to(device)
    return network if device.type == "mps" else network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def inference_batch_size(
    compute: ComputeParams, device: torch.device, image_shape: tuple[int, int, int]
) -> int:
    """Return how many (C, H, W) images a network sees at a time where nothing is learned."""
    if compute.inference_batch_size is not None:
        return compute.inference_batch_size
    n_values = _VALUES_ON_CPU if device.type == "cpu" else _VALUES_ELSEWHERE
    return min(max(n_values // math.prod(image_shape), _FEWEST), _MOST)


def autocast(compute: ComputeParams, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a forward pass: bf16, or float32, which leaves everything as it is.

    `auto` is bf16 on GPUs that have it; `fastest` also on CPUs that multiply bf16 natively, whose results then differ
    from those of other CPUs.
    """
    wanted_on = {"float32": (), "auto": ("cuda",), "fastest": ("cuda", "cpu")}
    is_bf16 = compute.precision == "bf16" or (
        device.type in wanted_on[compute.precision] and _has_bf16(device)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


def _has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the machine itself, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(
        error
    )  # torch has no type for the CPU's


@contextmanager
def memory_told(name: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Tell the user what to lower where memory runs out inside.

    Args:
        name: of what runs.
        more: returns what else is to be told.

    Raises:
        MemoryShortage: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        reason = (str(exc) or type(exc).__name__).splitlines()[0].rstrip(".")
        raise MemoryShortage(
            f"{name}: the memory of the device is not enough ({reason}). Lower batch_size, or, in globals.yml, "
            "compute.resident_limit_gb (images held on the device) or compute.inference_batch_size (where nothing is "
            f"learned).{more()}"
        ) from exc
