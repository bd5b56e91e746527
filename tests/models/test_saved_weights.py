"""Saved weights: the same bytes each time, with a digest that is verified."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.model import load_model, save_model
from pu_kd_pipeline.models.weights import read_weights_file, save_weights


def test_saved_weights_are_the_same_bytes_each_time(model, saved, tmp_path):
    first = (saved / "weights.safetensors").read_bytes()
    for number in range(8):
        save_model(model, tmp_path / f"again{number}")
        assert (tmp_path / f"again{number}" / "weights.safetensors").read_bytes() == first


def test_no_damaged_byte_of_weights_is_used(saved):
    file = saved / "weights.safetensors"
    valid = file.read_bytes()
    state = read_weights_file(file)
    # Every byte of the header, and some of the values, which the format itself does not protect.
    header_bytes = 8 + int.from_bytes(valid[:8], "little")
    values = range(header_bytes, len(valid), 11)
    for position in [*range(header_bytes), *values]:
        damaged = bytearray(valid)
        damaged[position] ^= 0x11
        file.write_bytes(damaged)
        with suppress(InputError):
            again = read_weights_file(file)
            assert again.keys() == state.keys()
            assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_flipped_bit_of_a_weight_is_refused(saved):
    file = saved / "weights.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-2] ^= 1
    file.write_bytes(damaged)
    message = r"weights.safetensors is damaged or was edited .*run the stage that wrote it again"
    with pytest.raises(InputError, match=message):
        load_model(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "sha256": "of something else"}])
def test_weights_of_other_programs_need_no_digest(model, saved, metadata):
    state = read_weights_file(saved / "weights.safetensors")
    save_file(state, saved / "weights.safetensors", metadata)
    assert load_model(saved).fingerprint() == model.fingerprint()


def test_weights_of_all_types_have_a_digest(tmp_path):
    state = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
        "turned": torch.arange(6.0).view(2, 3).T.contiguous(),
    }
    save_weights(state, tmp_path / "w.safetensors")
    again = read_weights_file(tmp_path / "w.safetensors")
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
