"""Hostile or broken weights files: no code runs, nothing unpacks, and the fault is named."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.params.teacher import TeacherParams
from tests.hostile.memory import peak_bytes
from tests.hostile.valid_files import CARD, state_dict

# Reading the small network takes a few megabytes.
MAX_GROWTH_BYTES = 2**29


def error_of(weights: Path | str) -> str:
    """Return the message with which a weights file is refused; it must not take much memory."""
    block = {**CARD, "classes": 3, "weights": str(weights), "taps": None}
    params = TeacherParams.model_validate(block)
    before = peak_bytes()
    with pytest.raises(InputError) as error:
        new_teacher(params)
    growth_bytes = peak_bytes() - before
    assert growth_bytes < MAX_GROWTH_BYTES
    return str(error.value)


def changed_state(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the weights with changes; None leaves a tensor out."""
    state: dict[str, Any] = {}
    for name, tensor in state_dict().items():
        state[name] = tensor.clone()
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


# --- pickles that would run code


class Call:
    """Unpickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def write_pickle(file: Path, call: Call, place: str) -> None:
    """Write a file whose unpickling calls a function, at one place of its content."""
    if place == "plain pickle":
        file.write_bytes(pickle.dumps(call))
    elif place == "among tensors":
        torch.save(changed_state({"evil": call}), file)
    elif place == "in a state dict":
        torch.save({"state_dict": {"x": call}}, file)
    else:
        # Before version 1.6, torch wrote no archive.
        is_archive = place != "old format"
        torch.save(call, file, _use_new_zipfile_serialization=is_archive)


PLACES = ["alone", "among tensors", "in a state dict", "plain pickle", "old format"]


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path, name: str, place: str) -> None:
    canary = tmp_path / "canary"
    calls = [
        Call(os.system, f"touch {canary}"),
        Call(exec, f"open({str(canary)!r}, 'w')"),
        Call(os.mkdir, str(canary)),
    ]
    file = tmp_path / name
    for call in calls:
        write_pickle(file, call, place)
        message = error_of(file)
        assert "without running code from it, which is refused" in message
        assert not canary.exists()


def test_a_pickle_named_safetensors_is_read_as_the_pickle_that_it_is(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    canary = tmp_path / "canary"
    torch.save(Call(os.mkdir, str(canary)), file)

    assert "without running code from it, which is refused" in error_of(file)
    assert not canary.exists()


class CallOf(Call):
    """Unpickles into a call of what another call returns, as an attack hides its function."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (self.function, *self.arguments)


@pytest.mark.parametrize("is_archive", [True, False])
def test_code_next_to_good_weights_does_not_run_and_is_named(
    tmp_path: Path, is_archive: bool
) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "w.pt"
    calls = {
        "posix.system": Call(os.system, f"touch {canary}"),
        "builtins.exec": Call(exec, f"open({str(canary)!r}, 'w')"),
        "builtins.eval": Call(eval, f"open({str(canary)!r}, 'w')"),
        "shutil.copy": Call(shutil.copy, __file__, str(canary)),
        "subprocess.run": Call(subprocess.run, ["touch", str(canary)]),
    }
    for name, call in calls.items():
        content = {"state_dict": state_dict(), "args": call}
        torch.save(content, file, _use_new_zipfile_serialization=is_archive)
        message = error_of(file)
        assert f"which is refused: it calls {name}" in message
        assert not canary.exists()


def test_functions_that_no_list_names_do_not_run_either(tmp_path: Path) -> None:
    # Whatever a pickle names gets a stand-in: safety does not depend on a list of names.
    canary = tmp_path / "canary"
    file = tmp_path / "w.pt"
    calls = [
        Call(torch.save, {}, str(canary)),
        Call(Path.touch, Path(canary)),
        CallOf(Path, "touch"),
        Call(np.save, str(canary), [1]),
        Call(logging.FileHandler, str(canary)),
        Call(zipfile.ZipFile, str(canary), "w"),
    ]
    for call in calls:
        torch.save({"state_dict": state_dict(), "args": call}, file)
        params = TeacherParams.model_validate(
            {**CARD, "classes": 3, "weights": str(file), "taps": None}
        )
        with contextlib.suppress(InputError):
            new_teacher(params)
        assert not list(tmp_path.glob("canary*"))


def test_stand_ins_are_gone_after_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": state_dict(), "args": argparse.Namespace()}, file)
    params = TeacherParams.model_validate(
        {**CARD, "classes": 3, "weights": str(file), "taps": None}
    )
    new_teacher(params)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_dicts_nested_without_end_and_names_of_many_parts_are_refused_quickly(
    tmp_path: Path,
) -> None:
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(150):
        inner["a"] = {}
        inner = inner["a"]
    inner["w"] = torch.zeros(1)
    file = tmp_path / "w.pt"
    torch.save(deep, file)
    assert "holds no state dict" in error_of(file)

    torch.save({"." * 1_000_000 + "fc.bias": torch.zeros(3)}, file)
    assert len(error_of(file)) < 5_000
    names = {f"{'x.' * 50}{number}": torch.zeros(1) for number in range(2_000)}
    torch.save(names, file)
    assert "holds none of the network's tensors" in error_of(file)


# --- tensors that do not fit

NAN = float("nan")
OTHER_CLASSES = {"fc.weight": torch.zeros(5, 16), "fc.bias": torch.zeros(5)}
# Finite, but not as float32.
BEYOND_FLOAT32 = torch.full((3,), 1e300, dtype=torch.float64)
NAN_STATISTICS = {"block1.1.running_var": torch.full((2,), NAN)}

WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"fc.bias": None}, "missing: fc.bias"),
    "extra": ({"head.bias": torch.zeros(3)}, "not part of it: head.bias"),
    "other classes": (OTHER_CLASSES, "of another shape: fc.bias (5,)"),
    "scalar": ({"fc.bias": torch.zeros(())}, "of another shape: fc.bias () instead of (3,)"),
    "NaN": ({"fc.bias": torch.tensor([0.0, NAN, 0.0])}, "not finite: fc.bias"),
    "infinite": ({"fc.bias": torch.tensor([0.0, -float("inf"), 0.0])}, "not finite: fc.bias"),
    "infinite as float32": ({"fc.bias": BEYOND_FLOAT32}, "not finite: fc.bias"),
    "NaN among statistics": (NAN_STATISTICS, "not finite: block1.1.running"),
    "whole numbers": ({"fc.bias": torch.zeros(3, dtype=torch.int8)}, "of another kind"),
    "complex": ({"fc.bias": torch.zeros(3, dtype=torch.complex64)}, "of another kind"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, case: str, suffix: str) -> None:
    changes, expected = WRONG_TENSORS[case]
    file = tmp_path / f"w.{suffix}"
    state = changed_state(changes)
    if suffix == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    message = error_of(file)

    assert expected in message
    assert "Check `architecture`, `architecture_options`, `classes`" in message


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")], ids=["sparse", "meta"]
)
def test_sparse_tensors_and_tensors_without_values_are_refused(
    tmp_path: Path, tensor: Tensor
) -> None:
    file = tmp_path / "w.pt"
    state = changed_state({"fc.bias": tensor})
    torch.save(state, file)
    message = error_of(file)

    expected = "of another kind (sparse, complex, whole numbers or without values)"
    assert f"{expected}: fc.bias" in message


def test_a_tensor_that_claims_a_terabyte_is_not_allocated(tmp_path: Path) -> None:
    # An expanded tensor stores its one value only, and any shape.
    tensor = torch.zeros(1).expand(10**12)
    file = tmp_path / "w.pt"
    state = changed_state({"fc.bias": tensor})
    torch.save(state, file)
    message = error_of(file)

    assert "of another shape: fc.bias (1000000000000,) instead of (3,)" in message


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"state_dict": 3}, {"a": 1}, torch.zeros(3), "text", None, {"model": {"a": "b"}}],
)
def test_content_that_is_not_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "w.pt"
    torch.save(content, file)
    assert "holds no state dict (names with tensors), but" in error_of(file)


# --- files with wrong headers

DEFAULT_SHAPE = [1]


def tensor_entry(
    start: int, end: int, shape: list[int] = DEFAULT_SHAPE, dtype: str = "F32"
) -> dict[str, Any]:
    """Return a tensor's entry in the header of a safetensors file."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors_bytes(header: bytes, n_data_bytes: int = 0, size: int | None = None) -> bytes:
    """Return a safetensors file of zeros; `size` is a wrong size of its header."""
    if size is None:
        size = len(header)
    # The format begins with the size of the header, as 8 bytes.
    size_bytes = struct.pack("<Q", size)
    return size_bytes + header + bytes(n_data_bytes)


def with_header(n_data_bytes: int, **tensors: dict[str, Any]) -> bytes:
    header = json.dumps(tensors)
    return safetensors_bytes(header.encode(), n_data_bytes)


# Cut within a tensor's list of entries, twice.
REPEATED_ENTRY = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2

WRONG_SAFETENSORS = {
    "one byte": b"\x01",
    "header of 2^63 bytes": safetensors_bytes(b"{}", size=2**63),
    "header of 2^64 - 1 bytes": safetensors_bytes(b"{}", size=2**64 - 1),
    "header of 99 MB": safetensors_bytes(b"{}", size=99_000_000),
    "header of no bytes": safetensors_bytes(b"{}", size=0),
    "overlap": with_header(6, a=tensor_entry(0, 4), b=tensor_entry(2, 6)),
    "gap": with_header(12, a=tensor_entry(0, 4), b=tensor_entry(8, 12)),
    "beyond the end": with_header(4, a=tensor_entry(0, 2**40)),
    "end before start": with_header(4, a=tensor_entry(4, 0)),
    "shape beyond 64 bits": with_header(4, a=tensor_entry(0, 4, shape=[2**62, 4])),
    "data left over": with_header(400, a=tensor_entry(0, 4)),
    "unknown dtype": with_header(4, a=tensor_entry(0, 4, dtype="F99")),
    "negative start": with_header(4, a=tensor_entry(-4, 0)),
    "not UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    "nested too deeply": safetensors_bytes(b"[" * 100_000),
    "null": safetensors_bytes(b"null"),
    "cut JSON": safetensors_bytes(REPEATED_ENTRY, 4),
}


@pytest.mark.parametrize("case", WRONG_SAFETENSORS)
def test_a_safetensors_file_with_a_wrong_header_is_refused(tmp_path: Path, case: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(WRONG_SAFETENSORS[case])
    assert "is not a readable safetensors file" in error_of(file)


@pytest.mark.parametrize("how", ["packed", "prefixed", "overlapping"])
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, how: str) -> None:
    good = tmp_path / "good.pt"
    bomb = tmp_path / "w.pt"
    torch.save(state_dict(), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bomb, "w") as written:
        for part in source.infolist():
            written.writestr(part.filename, source.read(part))
        if how == "overlapping":
            # Five thousand entries of the directory that all point to the same megabyte.
            written.writestr("good/data/bomb", bytes(2**20))
            entry = written.getinfo("good/data/bomb")
            written.filelist.extend([entry] * 5_000)
        else:
            zeros = bytes(2**26)
            written.writestr("good/data/bomb", zeros, zipfile.ZIP_DEFLATED)
    if how == "prefixed":
        # Zip readers look from the end, so that any file may come before an archive.
        archive = bomb.read_bytes()
        bomb.write_bytes(b"#!/bin/sh\n" + archive)
    message = error_of(bomb)
    expected = "is a packed archive, which torch never writes and which could unpack to any size"

    assert expected in message


# --- files that are something else

WEB_PAGE = "holds a web page in the place of weights"
XML_ERROR = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", WEB_PAGE),
        (b"\n\n  <HTML><body>Sign in</body></HTML>", WEB_PAGE),
        (XML_ERROR, WEB_PAGE),
        (LFS_POINTER, "is a pointer of Git LFS"),
        (b"", "is empty: download the weights again"),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_failed_download_is_recognized(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    assert message in error_of(file)


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 5_000, "~nobody_of_this_name/w.pt", "/dev/null", "/", "a\udcff.pt"]
)
def test_paths_that_are_not_files_are_refused(path: str) -> None:
    # Not the operating system's error, which names no parameter.
    message = error_of(path)
    assert message.startswith("teacher.weights: ")
