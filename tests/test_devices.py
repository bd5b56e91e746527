"""Number formats and batch sizes of devices."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_without_a_number_has_the_number_of_the_current_one(name, monkeypatch):
    # Threads start with the first GPU, so that a device without a number is another one there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    compute = compute_params("float32", 4).model_copy(update={"device": name})
    assert devices.prepare_device(compute) == torch.device("cuda", 1)
    numbered = compute.model_copy(update={"device": "cuda:0"})
    assert devices.prepare_device(numbered) == torch.device("cuda", 0)
