"""Tensors that do not fit the network as they are: left out, converted, or a miss that says why."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.weights import load_weights
from tests.models.checkpoints import (
    STATE,
    Mode,
    assert_equal,
    error_of,
    loaded,
    new_network,
    prefixed,
)

# --- tensors that are left over, converted or missing


def test_counters_and_losses_next_to_the_network_are_left_out_and_logged(tmp_path, caplog):
    state = {
        **prefixed("model.", STATE),
        "criterion.weight": torch.ones(3),
        "loss_fn.pos_weight": torch.ones(3),
        "model.total_ops": torch.zeros(1),
        "model.fc.num_batches_tracked": torch.tensor(1),
    }
    with caplog.at_level(logging.INFO):
        assert_equal(loaded({"state_dict": state}, tmp_path), STATE)
    assert "criterion.weight, loss_fn.pos_weight" in caplog.text


@pytest.mark.parametrize("name", ["head.weight", "model.act.weight", "temperature"])
def test_other_tensors_next_to_the_network_are_refused(tmp_path, name):
    # A layer behind the network, a learned slope, a temperature: each changes the outputs.
    state = {**prefixed("model.", STATE), name: torch.ones(1)}
    message = error_of({"state_dict": state}, tmp_path)
    assert f"not part of it: {name.removeprefix('model.')}" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_and_this_is_logged(tmp_path, dtype, caplog):
    state = {}
    expected = {}
    for name, value in STATE.items():
        state[name] = value
        if value.is_floating_point():
            state[name] = value.to(dtype)
        expected[name] = state[name].to(value.dtype)
    with caplog.at_level(logging.INFO):
        found = loaded(state, tmp_path)
    assert found["fc.weight"].dtype == torch.float32
    assert_equal(found, expected)
    type_name = str(dtype).removeprefix("torch.")
    assert f"tensors are converted from {type_name}" in caplog.text


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_quantized_weights_are_refused(tmp_path, kind):
    weight = STATE["fc.weight"]
    quantized = weight.to(torch.float8_e4m3fn)
    if kind == "int8":
        quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    message = error_of({**STATE, "fc.weight": quantized}, tmp_path)
    assert "quantized, which has lost digits: use the weights before: fc.weight" in message


# --- misses


def test_a_miss_lists_the_entries_and_the_names_on_both_sides(tmp_path):
    content = {"weights": {"features.0.weight": torch.ones(3)}, "epoch": 3, "args": Mode.TRAIN}
    message = error_of(content, tmp_path)
    assert "the network expects block1.0.weight, " in message
    assert "the file has features.0.weight" in message
    assert "weights (dict of 1 tensors), epoch (int), args (tests.models.checkpoints.Mode)" in (
        message
    )


def test_a_file_without_tensors_lists_its_entries(tmp_path):
    arrays = {name: value.numpy() for name, value in STATE.items()}
    message = error_of({"epoch": 3, "note": "x"}, tmp_path)
    assert "holds no state dict (names with tensors), but dict with the entries" in message
    assert "epoch (int), note (str)" in message
    assert "but an empty dict" in error_of({}, tmp_path)
    assert "block1.0.weight (NumPy array)" in error_of(arrays, tmp_path)
    assert "convert its arrays by torch.from_numpy" in error_of(arrays, tmp_path)


@pytest.mark.parametrize("where", ["alone", "in an entry", "old format"])
def test_a_pickled_network_is_refused_with_the_way_out(tmp_path, where):
    content: Any = new_network()
    if where == "in an entry":
        content = {"model": content, "epoch": 3}
    with pytest.raises(InputError) as error:
        loaded(content, tmp_path, old_format=where == "old format")
    message = str(error.value)
    assert "holds a pickled network" in message
    assert "run" in message
    assert "model.state_dict()" in message


def test_the_state_dict_next_to_a_pickled_network_is_taken(tmp_path):
    assert_equal(loaded({"net": new_network(), "state_dict": STATE}, tmp_path), STATE)


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_of_another_protocol_is_named(tmp_path, protocol):
    file = tmp_path / "w.pt"
    torch.save({"net": STATE, "args": argparse.Namespace()}, file, pickle_protocol=protocol)
    with pytest.raises(InputError, match=f"pickled with protocol {protocol}"):
        load_weights(new_network(), file)
