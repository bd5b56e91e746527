"""Checkpoints as training scripts write them: which tensors are taken."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import functools
import logging
import pathlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from pu_kd_pipeline.models.weights import load_weights
from tests.models.checkpoints import (
    OTHER,
    STATE,
    Mode,
    assert_equal,
    error_of,
    loaded,
    new_network,
    prefixed,
    without_counters,
)

# --- entries and prefixes

PARTS = ["module", "_orig_mod", "model", "net", "backbone", "encoder", "0", "_forward_module"]
KEYS = ["state_dict", "model", "model_state_dict", "net", "ema", "module", "params", "teacher", "x"]
OTHER_ENTRIES: dict[str, Any] = {
    "epoch": 3,
    "best": 0.9,
    "arch": "digits_cnn",
    "args": argparse.Namespace(lr=0.1),
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
    "history": [0.1, 0.2],
}


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=3),
    keys=st.lists(st.sampled_from(KEYS), max_size=3),
    others=st.lists(st.sampled_from(sorted(OTHER_ENTRIES)), max_size=3, unique=True),
    has_counters=st.booleans(),
    old_format=st.booleans(),
)
def test_weights_are_found_in_any_entry_and_behind_any_prefix(
    parts, keys, others, has_counters, old_format
):
    state = STATE
    if not has_counters:
        state = without_counters(state)
    prefix = "".join(f"{part}." for part in parts)
    content: dict[str, Any] = prefixed(prefix, state)
    for key in keys:
        outer = {name: OTHER_ENTRIES[name] for name in others}
        outer[key] = content
        content = outer
    with tempfile.TemporaryDirectory() as folder:
        found = loaded(content, Path(folder), old_format=old_format)

    assert_equal(without_counters(found), without_counters(STATE))


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=3), name=st.sampled_from(["w", "w.pt"]))
def test_prefixes_are_removed_from_safetensors_of_any_name(parts, name):
    prefix = "".join(f"{part}." for part in parts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        save_file(prefixed(prefix, STATE), file)
        network = new_network()
        load_weights(network, file)

    assert_equal(dict(network.state_dict()), STATE)


def test_wrappers_within_names_do_not_count(tmp_path):
    # Parts of a network that are compiled, sharded or data-parallel, each by itself.
    state = {}
    for number, (name, value) in enumerate(STATE.items()):
        wrapper = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"][number % 3]
        block, _, rest = name.partition(".")
        state[f"{block}.{wrapper}.{rest}"] = value
    assert_equal(loaded({"state_dict": state}, tmp_path), STATE)


def test_a_prefix_of_the_network_itself_may_be_missing(tmp_path):
    file = tmp_path / "w.pt"
    torch.save(STATE, file)
    network = nn.ModuleDict({"model": new_network()})
    load_weights(network, file)

    assert_equal(dict(network["model"].state_dict()), STATE)


class AttributeDict(dict[str, Any]):
    """A dict whose items are attributes as well."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__.update(items)


@dataclasses.dataclass(slots=True)
class WithSlots:
    """Is unpickled from a tuple."""

    rate: float = 0.1


# What training scripts save next to the weights.
BYSTANDERS: dict[str, Callable[[], Any]] = {
    "arguments": lambda: argparse.Namespace(lr=0.1, folder=pathlib.PurePosixPath("/x")),
    "NumPy number": lambda: np.float64(0.9),
    "NumPy array": lambda: np.zeros(3),
    "path": lambda: pathlib.PosixPath("/x"),
    "configuration": lambda: OmegaConf.create({"a": [1, {"b": 2}]}),
    "attribute dict": lambda: AttributeDict(a=1),
    "defaultdict": lambda: collections.defaultdict(list, {"loss": [0.1]}),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "partial": lambda: functools.partial(int, base=2),
    "date": lambda: datetime.datetime(2024, 1, 1),
    "enumeration": lambda: Mode.TRAIN,
    "object with slots": WithSlots,
    "network": lambda: nn.CrossEntropyLoss(torch.ones(3)),
    "set": lambda: {1, 2},
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", BYSTANDERS)
def test_objects_next_to_the_weights_are_passed_over(tmp_path, kind, old_format):
    if kind == "network" and old_format:
        pytest.skip("the old format pickles the source of networks, which torch refuses")
    content = {"net": STATE, "other": BYSTANDERS[kind]()}
    assert_equal(loaded(content, tmp_path, old_format=old_format), STATE)


def test_a_state_dict_of_a_dict_class_of_its_own_opens(tmp_path):
    state = AttributeDict()
    state.update(STATE)
    assert_equal(loaded(AttributeDict(net=state), tmp_path), STATE)


def test_objects_next_to_the_weights_are_never_imported(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "trainer_of_a_user.py").write_text("class Config:\n    pass\n")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(folder))
        import trainer_of_a_user  # type: ignore[import-not-found]

        torch.save({"net": STATE, "config": trainer_of_a_user.Config()}, tmp_path / "w.pt")
    monkeypatch.delitem(__import__("sys").modules, "trainer_of_a_user")
    # It would say so.
    (folder / "trainer_of_a_user.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    network = new_network()
    load_weights(network, tmp_path / "w.pt")

    assert_equal(dict(network.state_dict()), STATE)


def test_a_dict_that_holds_itself_opens(tmp_path):
    content: dict[str, Any] = {"net": STATE}
    content["self"] = content
    assert_equal(loaded(content, tmp_path), STATE)


# --- several candidates


def torchvision_reference() -> dict[str, Any]:
    """Return what torchvision's reference scripts save."""
    averaged = {"n_averaged": torch.tensor(3), **prefixed("module.", OTHER)}
    optimizer = torch.optim.SGD(new_network().parameters(), lr=0.1, momentum=0.9)
    return {
        "model": STATE,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "model_ema": averaged,
    }


AVERAGED: dict[str, Callable[[], Any]] = {
    "torchvision": torchvision_reference,
    "timm": lambda: {"state_dict": STATE, "state_dict_ema": OTHER, "arch": "x"},
    "ema": lambda: {"ema": OTHER, "net": STATE},
    "Lightning": lambda: {
        "state_dict": {**prefixed("model.", STATE), **prefixed("ema_model.", OTHER)}
    },
    "nested": lambda: {"ema": {"module": OTHER, "decay": 0.9}, "model": STATE},
    "swa": lambda: {"model": STATE, "swa_model": prefixed("module.", OTHER)},
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_averaged_weights_are_preferred_and_this_is_logged(tmp_path, kind, caplog):
    with caplog.at_level(logging.INFO):
        assert_equal(loaded(AVERAGED[kind](), tmp_path), OTHER)
    assert "the weights are taken from" in caplog.text
    assert "ema" in caplog.text or "swa" in caplog.text


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"teacher": STATE, "student": OTHER}, "entry teacher and entry student"),
        ({"model": STATE, "gradients": OTHER}, "entry model and entry gradients"),
        ({"ema": STATE, "model_ema": OTHER}, "entry ema and entry model_ema"),
        ([STATE, OTHER], "entry 0 and entry 1"),
        (
            {"state_dict": {**prefixed("a.", STATE), **prefixed("b.", OTHER)}},
            "prefix a. and entry state_dict, prefix b.",
        ),
    ],
)
def test_different_weights_that_both_fit_are_refused_by_name(tmp_path, content, names):
    message = error_of(content, tmp_path)
    assert "holds several weights that fit and differ" in message
    assert names in message


def test_equal_weights_twice_are_no_question(tmp_path):
    copies = {name: value.clone() for name, value in STATE.items()}
    assert_equal(loaded({"model": STATE, "best_model": copies}, tmp_path), STATE)


def test_weights_under_the_networks_own_names_come_before_others_in_one_dict(tmp_path):
    content = {**STATE, **prefixed("old.", OTHER)}
    assert_equal(loaded(content, tmp_path), STATE)


def test_the_content_decides_how_a_file_is_read(tmp_path):
    as_torch = tmp_path / "torch.safetensors"
    torch.save(STATE, as_torch)
    as_safetensors = tmp_path / "safetensors.pt"
    save_file(STATE, as_safetensors)
    for file in (as_torch, as_safetensors):
        network = new_network()
        load_weights(network, file)
        assert_equal(dict(network.state_dict()), STATE)
