"""Weights files that are hostile or broken: no code runs, nothing unpacks without bound, and the fault is named."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model, load_model, load_pu_classifier, save_model
from pu_kd_pipeline.params.teacher import TeacherParams
from tests.hostile.valid_files import INPUT, state_dict


def refusal(weights: Path, **teacher: Any) -> str:
    """Return what is said of a weights file, in seconds and without a gigabyte."""
    resource = pytest.importorskip("resource", reason="Windows does not tell")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = {
        "architecture": "digits_cnn",
        "architecture_options": {"width": 2},
        "classes": 3,
        "input": INPUT,
        "taps": None,
    }
    with pytest.raises(InputError) as refused:
        new_teacher(TeacherParams.model_validate({**block, "weights": str(weights), **teacher}))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2**29
    return str(refused.value)


def altered(**changes: Any) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in state_dict().items()} | changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


# --- pickles that would run code


class Runs:
    """Unpickles into a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w"])
@pytest.mark.parametrize(
    "place", ["alone", "among tensors", "as a name", "plain pickle", "old format"]
)
def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path, name: str, place: str) -> None:
    canary = tmp_path / "canary"
    calls = [
        Runs(os.system, f"touch {canary}"),
        Runs(exec, f"open({str(canary)!r}, 'w')"),
        Runs(os.mkdir, str(canary)),
    ]
    for call in calls:
        content = {
            "among tensors": altered(evil=call),
            "as a name": {"state_dict": {"x": call}},
        }.get(place, call)
        if place == "plain pickle":
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(
                content, tmp_path / name, _use_new_zipfile_serialization=place != "old format"
            )
        assert "without running code from it, which is refused" in refusal(tmp_path / name)
        assert not canary.exists()


def test_a_pickle_called_safetensors_is_none(tmp_path: Path) -> None:
    torch.save(Runs(os.mkdir, str(tmp_path / "canary")), tmp_path / "w.safetensors")
    assert "is not a readable safetensors file" in refusal(tmp_path / "w.safetensors")
    assert not (tmp_path / "canary").exists()


# --- tensors that do not fit

UNFIT = {
    "missing": ({"fc.bias": None}, "missing: fc.bias"),
    "extra": ({"head.bias": torch.zeros(3)}, "not part of it: head.bias"),
    "other classes": ({"fc.weight": torch.zeros(5, 16), "fc.bias": torch.zeros(5)}, "of another shape: fc.bias (5,)"),
    "scalar": ({"fc.bias": torch.zeros(())}, "of another shape: fc.bias () instead of (3,)"),
    "NaN": ({"fc.bias": torch.tensor([0.0, float("nan"), 0.0])}, "not finite: fc.bias"),
    "infinite": ({"fc.bias": torch.tensor([0.0, -float("inf"), 0.0])}, "not finite: fc.bias"),
    "infinite as float32": ({"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}, "not finite: fc.bias"),
    "NaN among statistics": ({"block1.1.running_var": torch.full((2,), float("nan"))}, "not finite: block1.1.running"),
    "whole numbers": ({"fc.bias": torch.zeros(3, dtype=torch.int8)}, "of another kind"),
    "complex": ({"fc.bias": torch.zeros(3, dtype=torch.complex64)}, "of another kind"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("case", UNFIT)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, case: str, ending: str) -> None:
    changes, message = UNFIT[case]
    (save_file if ending == "safetensors" else torch.save)(
        altered(**changes), tmp_path / f"w.{ending}"
    )
    said = refusal(tmp_path / f"w.{ending}")
    assert message in said
    assert "Check `architecture`, `architecture_options`, `classes`" in said


def test_tensors_without_values_of_their_own_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save(altered(**{"fc.bias": tensor}), tmp_path / "w.pt")
        assert (
            "of another kind (sparse, quantized, complex, whole numbers or without values): fc.bias"
            in refusal(tmp_path / "w.pt")
        )


def test_a_tensor_that_claims_a_terabyte_is_not_made(tmp_path: Path) -> None:
    torch.save(altered(**{"fc.bias": torch.zeros(1).expand(10**12)}), tmp_path / "w.pt")
    assert "of another shape: fc.bias (1000000000000,) instead of (3,)" in refusal(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"state_dict": 3}, {"a": 1}, torch.zeros(3), "text", None, {"model": {"a": "b"}}],
)
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "holds no state dict (names with tensors), but" in refusal(tmp_path / "w.pt")


# --- files that lie


def safetensors_of(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def tensor(
    offsets: tuple[int, int], shape: list[int] | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": list(offsets)}


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\x01", safetensors_of(b"{}", size=2**63), safetensors_of(b"{}", size=2**64 - 1),
        safetensors_of(b"{}", size=99_000_000), safetensors_of(b"{}", size=0),
        safetensors_of(header(a=tensor((0, 4)), b=tensor((2, 6))), bytes(6)),
        safetensors_of(header(a=tensor((0, 4)), b=tensor((8, 12))), bytes(12)),
        safetensors_of(header(a=tensor((0, 2**40))), bytes(4)), safetensors_of(header(a=tensor((4, 0))), bytes(4)),
        safetensors_of(header(a=tensor((0, 4), [2**62, 4])), bytes(4)),
        safetensors_of(header(a=tensor((0, 4))), bytes(400)),
        safetensors_of(header(a=tensor((0, 4), dtype="F99")), bytes(4)),
        safetensors_of(header(a=tensor((-4, 0))), bytes(4)),
        safetensors_of(b'{"\xff": 1}'), safetensors_of(b"[" * 100_000), safetensors_of(b"null"),
        safetensors_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2, bytes(4)),
    ],
)  # fmt: skip
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    assert "is not a readable safetensors file" in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize("how", ["packed", "prefixed", "overlapping"])
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, how: str) -> None:
    torch.save(state_dict(), tmp_path / "good.pt")
    bomb = tmp_path / "w.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(bomb, "w") as written:
        for part in good.infolist():
            written.writestr(part.filename, good.read(part))
        if how == "overlapping":
            written.writestr("good/data/bomb", bytes(2**20))
            written.filelist.extend([written.getinfo("good/data/bomb")] * 5_000)
        else:
            written.writestr("good/data/bomb", bytes(2**26), zipfile.ZIP_DEFLATED)
    if how == "prefixed":
        bomb.write_bytes(b"#!/bin/sh\n" + bomb.read_bytes())
    assert (
        "is a packed archive, which torch never writes and which could unpack to any size"
        in refusal(bomb)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"<!DOCTYPE html>\n<html><title>404</title></html>",
            "holds a web page in the place of weights",
        ),
        (b"\n\n  <HTML><body>Sign in</body></HTML>", "holds a web page in the place of weights"),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
            "holds a web page in the place of weights",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS",
        ),
        (b"", "is empty: download the weights again"),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_failed_download_is_called_what_it_is(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 5_000, "~nobody_of_this_name/w.pt", "/dev/null", "/", "a\udcff.pt"]
)
def test_paths_that_are_no_files_are_refused(path: str) -> None:
    assert refusal(Path(path) if "~" not in path else path).startswith("teacher.weights: ")


# --- cards

CARD = {
    "architecture": "digits_cnn",
    "architecture_options": {"width": 2},
    "classes": ["a", "b", "c"],
    "input": INPUT,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "of another shape: fc.bias (3,) instead of (2,)"),
        ({"classes": []}, "two classes or more"),
        ({"classes": ["a", "a", "b"]}, "of different names"),
        ({"architecture_options": {"width": -1}}, "negative dimension"),
        ({"architecture_options": {"width": 10**9}}, "digits_cnn"),
        ({"architecture": "digits_cnm"}, "did you mean 'digits_cnn'"),
        ({"architecture": "..:x"}, "relative import"),
        ({"input": {**INPUT, "size_px": 10**9}}, "input.size_px"),
        ({"input": {**INPUT, "mean": [float("nan")]}}, "input.mean.0"),
        ({"input": {**INPUT, "std": [0.0]}}, "std must be positive"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_that_lies_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_file(state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "card.json").write_text(json.dumps(CARD | changes))
    with pytest.raises(InputError) as refused:
        load_model(tmp_path)
    assert message in str(refused.value)
    assert "Exception raised from" not in str(refused.value)


@pytest.mark.parametrize(
    ("taps", "message"),
    [(["nowhere"], "not a layer of the network: 'nowhere'"), ([], "no layer is named")],
)
def test_taps_that_a_card_makes_up_are_refused(
    tmp_path: Path, taps: list[str], message: str
) -> None:
    save_file(state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "card.json").write_text(json.dumps({**CARD, "taps": taps}))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path).extractor()
    assert message in refusal(tmp_path / "weights.safetensors", taps=taps)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "null",
        "\udcff",
        '{"classes": 1e999}',
        '{"origin": {"a": ' + "9" * 9_999 + "}}",
    ],
)
@pytest.mark.parametrize("load", [load_model, load_pu_classifier])
def test_a_card_that_is_no_json_is_refused(
    tmp_path: Path, text: str, load: Callable[[Path], Any]
) -> None:
    (tmp_path / "card.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"card\.json is not the card of a"):
        load(tmp_path)


def test_a_model_that_cannot_be_written_whole_is_not_there_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("digits_cnn", 3, 1, {"width": 2})
    model = Model(network, ModelCard.model_validate(CARD))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
