"""Number formats: bf16 where it is asked for and the hardware has it, float32 elsewhere."""

from __future__ import annotations

import pytest
import torch

from pu_kd_pipeline.infra import devices
from pu_kd_pipeline.params import ComputeParams


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("precision", ["auto", "float32", "bf16", "fastest"])
def test_cpus_multiply_bf16_only_where_it_is_asked_for(precision, is_native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    compute = ComputeParams(
        device="cpu", precision=precision, n_threads=1, resident_limit_gb=1.0, inference_batch_size=4
    )
    with devices.autocast(compute, devices.prepare_device(compute)):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    is_bf16 = precision == "bf16" or (precision == "fastest" and is_native)
    assert product.dtype == (torch.bfloat16 if is_bf16 else torch.float32)
