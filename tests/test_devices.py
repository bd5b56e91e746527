"""Number formats, batch sizes and memory of devices."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from pu_kd_pipeline import devices
from pu_kd_pipeline.params.compute import ComputeParams


def compute_params(precision, inference_batch_size):
    return ComputeParams(
        device="cpu",
        precision=precision,
        n_threads=1,
        resident_limit_gb=1.0,
        inference_batch_size=inference_batch_size,
    )


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("precision", ["auto", "float32", "bf16", "fastest"])
def test_cpus_multiply_bf16_only_if_it_is_asked_for(precision, is_native, monkeypatch):
    # Private functions, which not every version of torch has.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    compute = compute_params(precision, inference_batch_size=4)
    device = devices.prepare_device(compute)
    ones = torch.ones(2, 2)
    with devices.autocast(compute, device):
        product = ones @ ones

    # `bf16` is an order; `fastest` depends on the hardware.
    expected = torch.float32
    is_fastest = precision == "fastest" and is_native
    if precision == "bf16" or is_fastest:
        expected = torch.bfloat16

    assert product.dtype == expected


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", "cpu float32"),
        ("auto", "cuda", "cuda bf16"),
        ("float32", "cuda", "cuda float32"),
        ("bf16", "cpu", "cpu bf16"),
    ],
)
def test_what_decides_values_is_the_format_and_not_its_setting(
    precision, device, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    compute = compute_params(precision, inference_batch_size=4)
    assert devices.arithmetic(compute, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("image_shape", "on_cpu", "on_gpu"),
    [
        ((1, 8, 8), 1024, 1024),
        ((1, 32, 32), 512, 1024),
        ((3, 32, 32), 170, 1024),
        ((3, 128, 128), 10, 170),
        ((3, 224, 224), 4, 55),
    ],
)
def test_inference_batches_suit_device_and_image(image_shape, on_cpu, on_gpu):
    compute = compute_params("float32", inference_batch_size=None)

    # A large batch of large images leaves the caches of a CPU, and fills the memory of a GPU.
    cpu = torch.device("cpu")
    cpu_batch_size = devices.inference_batch_size(compute, cpu, image_shape)

    assert cpu_batch_size == on_cpu

    gpu = torch.device("cuda")
    gpu_batch_size = devices.inference_batch_size(compute, gpu, image_shape)

    assert gpu_batch_size == on_gpu


def test_a_stated_inference_batch_size_is_used():
    compute = compute_params("float32", inference_batch_size=3)
    cpu = torch.device("cpu")
    batch_size = devices.inference_batch_size(compute, cpu, (1, 8, 8))
    assert batch_size == 3


# Three arrays of 20 MB at a time, as a batch has; prints the page faults of the later rounds.
ROUNDS = """
import resource
import sys
import numpy as np
from pu_kd_pipeline import devices

print(sys.argv[1] == "keep" and devices.keep_freed_memory())

def one_round():
    arrays = [np.empty(20_000_000, dtype=np.uint8) for _ in range(3)]
    for array in arrays:
        array.fill(1)

for _ in range(3):
    one_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    one_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str, **variables: str) -> tuple[str, int]:
    """Return whether freed memory was kept, and how many pages the kernel gave again."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in devices._ALLOCATOR_VARIABLES
    }
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, mode],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    is_kept, n_faults = done.stdout.split()
    return is_kept, int(n_faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_batches_stays_in_the_process():
    _, n_returned = page_faults("as it is")
    is_kept, n_kept = page_faults("keep")

    assert is_kept == "True"
    # 5 rounds of 60 MB have 73,000 pages of 4 KB, or 145 of 2 MB.
    assert n_returned >= 100
    assert n_kept < n_returned / 20


def test_the_users_own_choice_of_allocation_is_left_alone():
    is_kept, _ = page_faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert is_kept == "False"
