"""Number formats: bf16 where it is asked for and the hardware has it, float32 elsewhere."""

from __future__ import annotations

import pytest
import torch

from pu_kd_pipeline import devices
from pu_kd_pipeline.params.compute import ComputeParams


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("precision", ["auto", "float32", "bf16", "fastest"])
def test_cpus_multiply_bf16_only_where_it_is_asked_for(precision, is_native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    compute = ComputeParams(
        device="cpu",
        precision=precision,
        n_threads=1,
        resident_limit_gb=1.0,
        inference_batch_size=4,
    )
    with devices.autocast(compute, devices.prepare_device(compute)):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    is_bf16 = precision == "bf16" or (precision == "fastest" and is_native)
    assert product.dtype == (torch.bfloat16 if is_bf16 else torch.float32)


@pytest.mark.parametrize(
    ("image_shape", "on_cpu", "on_gpu"),
    [
        ((1, 8, 8), 1024, 1024),
        ((1, 32, 32), 512, 1024),
        ((3, 32, 32), 170, 1024),
        ((3, 224, 224), 8, 55),
    ],
)
def test_inference_batches_suit_device_and_image(image_shape, on_cpu, on_gpu):
    compute = ComputeParams(
        device="cpu",
        precision="float32",
        n_threads=1,
        resident_limit_gb=1.0,
        inference_batch_size=None,
    )
    sizes = [
        devices.inference_batch_size(compute, torch.device(kind), image_shape)
        for kind in ("cpu", "cuda")
    ]
    assert sizes == [on_cpu, on_gpu]
    given = compute.model_copy(update={"inference_batch_size": 3})
    assert devices.inference_batch_size(given, torch.device("cpu"), image_shape) == 3
