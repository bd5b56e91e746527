"""Reading weights from untrusted files, safely."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


_START_BYTES = 64  # enough to recognize the kind of a file


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict into a network, refusing anything that does not fit exactly.

    Raises:
        InputError: the file is missing, is not a state dict, or has missing, extra, mis-shaped or
            non-finite tensors.
    """
    state = read_state_dict(path)
    expected = network.state_dict()
    faults = _weight_faults(state, expected)
    if faults:
        raise InputError(
            f"{path}: the weights do not fit the architecture: {'; '.join(faults)}. "
            "Check `architecture`, `architecture_options`, `classes` and `input.channels`"
        )
    network.load_state_dict(state)


def _weight_faults(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return one line per kind of fault, with the names of the first few tensors."""
    odd: list[str] = []
    misshaped: list[str] = []
    not_finite: list[str] = []
    for name in sorted(expected.keys() & state.keys()):
        tensor = state[name]
        target = expected[name]
        if not _is_plain(tensor, target):
            odd.append(name)
        elif tensor.shape != target.shape:
            misshaped.append(f"{name} {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        # Only of equal shape: a tensor of a few bytes may claim any size, and reading all of its
        # values would allocate that.
        elif not tensor.to(target.dtype).isfinite().all():
            not_finite.append(name)
    names_by_fault = {
        "missing": sorted(expected.keys() - state.keys()),
        "not part of it": sorted(state.keys() - expected.keys()),
        "of another kind (sparse, quantized, complex, whole numbers or without values)": odd,
        "of another shape": misshaped,
        "not finite": not_finite,
    }
    return [f"{fault}: {_first_few(names)}" for fault, names in names_by_fault.items() if names]


def _first_few(names: list[str]) -> str:
    text = ", ".join(names[:5])
    if len(names) > 5:
        text += f" and {len(names) - 5} more"
    return text


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor has values that can be copied into `expected` without loss."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.is_complex() == expected.is_complex()
        and tensor.is_floating_point() >= expected.is_floating_point()
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a PyTorch file that holds only tensors.

    Of a dict with a `state_dict` or `model` entry, that entry is returned. The `module.` prefix of
    data-parallel training is removed.

    Raises:
        InputError: the file is missing or unreadable, unpacks to more than its size, or is a pickle
            that would run code.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    _refuse_other_files(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch_file(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    # Each of these has been raised for some damaged header.
    known_errors = (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        MemoryError,
    )
    try:
        return load_file(path)
    except known_errors as exc:
        raise InputError(f"{path} is not a readable safetensors file: {exc}") from exc


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        _refuse_zip_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as exc:
        raise InputError(
            f"{path} cannot be read without running code from it, which is refused. If you trust "
            "it, convert it: "
            'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from exc
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    refusal = f"{path} holds no state dict (names with tensors), but {type(content).__name__}"
    if not isinstance(content, Mapping):
        raise InputError(refusal)
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(refusal)
        state[str(name).removeprefix("module.")] = value
    return state


def _refuse_other_files(path: Path) -> None:
    """Raise an InputError for a file that is plainly not weights: empty, or a server's error page.

    The readers of weights would call such a file damaged or dangerous, which is misleading.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError as exc:
        raise InputError(f"{path} cannot be opened ({exc}): check that it may be read") from exc
    fix = "download the weights again, and look at what the address answers"
    if not start:
        raise InputError(f"{path} is empty: {fix}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} holds a web page in the place of weights: {fix}")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a pointer of Git LFS and not the weights: fetch them with `git lfs pull`"
        )


def _refuse_zip_bomb(path: Path) -> None:
    """Raise an InputError for an archive whose parts are compressed or overlap.

    Torch never writes such archives. Nothing limits the size that they unpack to, and torch's
    reader sets no limit either.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    unpacked_bytes = sum(part.file_size for part in parts)
    if is_packed or unpacked_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is a packed archive, which torch never writes and which could unpack to any "
            "size: save the weights again with torch.save or safetensors"
        )
