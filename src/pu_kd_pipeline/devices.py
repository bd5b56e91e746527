"""Which device and which number format a stage uses, and what happens when memory runs out."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pu_kd_pipeline.allocator import keep_freed_memory
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.learning.networks.strided_pointwise import restore_contiguous_weights
from pu_kd_pipeline.params.compute import ComputeParams

Network = TypeVar("Network", bound=nn.Module)


class MemoryShortage(UnavailableError):
    """A device, or the machine, has too little memory; smaller batches may help."""


# Values of the images in one batch of inference. A CPU is twice as fast if a layer's output stays
# in its caches and in memory that the process keeps (docs/results/speed.md); a GPU needs many
# values to be busy.
_VALUES_ON_CPU = 2**19
_VALUES_ELSEWHERE = 2**23
_MIN_BATCH_SIZE = 4
_MAX_BATCH_SIZE = 1024

# The kinds of devices on which a precision means bf16, where the hardware has it.
_BF16_DEVICES: dict[str, tuple[str, ...]] = {
    "float32": (),
    "auto": ("cuda",),
    "fastest": ("cuda", "cpu"),
}


def prepare_device(compute: ComputeParams) -> torch.device:
    """Return the device that `compute.device` names, and set torch's number of threads.

    A GPU without a number is the one that is current in this thread.

    Raises:
        InputError: the machine does not have that device.
    """
    if compute.n_threads is not None:
        torch.set_num_threads(compute.n_threads)
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        keep_freed_memory()
    is_available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind, _, index = name.partition(":")
    is_known_index = not index or int(index) < torch.cuda.device_count()
    if not is_available[kind] or not is_known_index:
        raise InputError(
            f"device {name!r} is not on this machine (torch {torch.__version__}): "
            "set device to auto or cpu"
        )
    if name == "cuda":
        # With its number: in other threads, such as those that read ahead, it would be the first.
        return torch.device(name, torch.cuda.current_device())
    return torch.device(name)


def channels_last(network: Network, device: torch.device) -> Network:
    """Move a network to a device, with its convolution weights in channels-last order; return it.

    Color images are in that order (`learning.augmentation.Normalize`) and the network follows.
    Gray images have no such order, and on a CPU LeNet-5 trains 1.7 times as fast with it
    (docs/results/speed.md).
    """
    network = network.to(device)
    if device.type == "mps":
        # Normalize makes the same exception for Apple's GPUs.
        return network
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        restore_contiguous_weights(network)
    return network


def inference_batch_size(
    compute: ComputeParams, device: torch.device, image_shape: tuple[int, int, int]
) -> int:
    """Return how many (C, H, W) images a network processes at a time outside of training."""
    if compute.inference_batch_size is not None:
        return compute.inference_batch_size
    n_values = _VALUES_ON_CPU if device.type == "cpu" else _VALUES_ELSEWHERE
    n_images = n_values // math.prod(image_shape)
    return min(max(n_images, _MIN_BATCH_SIZE), _MAX_BATCH_SIZE)


def autocast(compute: ComputeParams, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a forward pass: bf16, or float32, which changes nothing.

    `auto` is bf16 on GPUs that have it; `fastest` also on CPUs that multiply bf16 natively, whose
    results then differ from those of other CPUs.
    """
    is_bf16 = _computes_in_bf16(compute, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


def arithmetic(compute: ComputeParams, device: torch.device) -> str:
    """Return the kind of device and the number format, with which the values of results change.

    Names of what is stored contain it: `auto` and `fastest` mean another format elsewhere.
    """
    number_format = "float32"
    if _computes_in_bf16(compute, device):
        number_format = "bf16"
    return f"{device.type} {number_format}"


def _computes_in_bf16(compute: ComputeParams, device: torch.device) -> bool:
    if compute.precision == "bf16":
        return True
    return device.type in _BF16_DEVICES[compute.precision] and _has_bf16(device)


def _has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 natively: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private to torch, so that a version may lack them.
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        is_supported = getattr(torch.cpu, name, None)
        if is_supported is not None and is_supported():
            return True
    return False


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error means that a device, or the machine itself, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Torch has no type for the CPU's shortage.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def explain_memory_shortage(name: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Raise an error that explains what to lower if memory runs out inside the context.

    Args:
        name: name of the computation, for the message.
        more: returns text that is appended to the message.

    Raises:
        MemoryShortage: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_memory_error(exc):
            raise
        message = str(exc) or type(exc).__name__
        # Torch continues with advice about its allocator, which is of no use here.
        first_line = message.splitlines()[0].rstrip(".")
        raise MemoryShortage(
            f"{name}: the memory of the device is not enough ({first_line}). Lower batch_size, or, "
            "in globals.yml, compute.resident_limit_gb (images held on the device) or "
            "compute.inference_batch_size (where nothing is learned)."
            f"{more()}"
        ) from exc


def hardware_name(compute: ComputeParams) -> str:
    """Return the name of the processor, and of the device that computes, if that is another."""
    device = prepare_device(compute)
    if device.type == "cpu":
        return cpu_name()
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cpu_name()}"
    return f"{device.type}, {cpu_name()}"


def cpu_name() -> str:
    """Return the processor of this machine."""
    cpu_info = Path("/proc/cpuinfo")
    # Linux names the model there only: `platform.processor()` gives the architecture.
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
