"""Reading weights that somebody else wrote, safely."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


_MARK_BYTES = 64  # enough to tell what a file is


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict into a network, refusing anything that does not fit exactly.

    Raises:
        InputError: the file is missing, is not a state dict, or has missing, extra, mis-shaped or non-finite tensors.
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
    def some(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shared = sorted(expected.keys() & state.keys())
    odd = [name for name in shared if not _is_plain(state[name], expected[name])]
    mis_shaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if name not in odd and state[name].shape != expected[name].shape
    ]
    # only of equal shape: a tensor of a few bytes may claim any size, and a look at every value would make it real
    comparable = [
        name for name in shared if name not in odd and state[name].shape == expected[name].shape
    ]
    not_finite = [
        name
        for name in comparable
        if not bool(state[name].to(expected[name].dtype).isfinite().all())
    ]
    faults = (
        ("missing", missing),
        ("not part of it", extra),
        ("of another kind (sparse, quantized, complex, whole numbers or without values)", odd),
        ("of another shape", mis_shaped),
        ("not finite", not_finite),
    )
    return [f"{what}: {some(names)}" for what, names in faults if names]


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor has values that can be copied into another one without losing some."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.is_complex() == expected.is_complex()
        and tensor.is_floating_point() >= expected.is_floating_point()
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a PyTorch file that holds nothing but tensors.

    A dict with a `state_dict` or `model` entry is opened, and the `module.` prefix of data-parallel training removed.

    Raises:
        InputError: the file is missing or unreadable, unpacks to more than its size, or is a pickle that would run
            code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    _refuse_what_is_no_weights(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (
            SafetensorError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            MemoryError,
        ) as exc:
            raise InputError(f"{path} is not a readable safetensors file: {exc}") from exc
    try:
        _refuse_zip_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as exc:
        raise InputError(
            f"{path} cannot be read without running code from it, which is refused. If you trust it, convert it: "
            'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from exc
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise InputError(
            f"{path} holds no state dict (names with tensors), but {type(content).__name__}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _refuse_what_is_no_weights(path: Path) -> None:
    """Raise an InputError for a file that plainly is something else: nothing, or the page that a server sent instead.

    Such a file would be called a damaged or dangerous one by what reads weights, and that misleads.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_MARK_BYTES)
    except OSError as exc:
        raise InputError(f"{path} cannot be opened ({exc}): check that it may be read") from exc
    mend = "download the weights again, and look at what the address answers"
    if not start:
        raise InputError(f"{path} is empty: {mend}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} holds a web page in the place of weights: {mend}")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a pointer of Git LFS and not the weights: fetch them with `git lfs pull`"
        )


def _refuse_zip_bomb(path: Path) -> None:
    """Raise an InputError for an archive whose parts are packed or overlap: torch writes them as they are.

    What such an archive unpacks to has no bound, and torch's reader sets none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if is_packed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise InputError(
            f"{path} is a packed archive, which torch never writes and which could unpack to any size: save the "
            "weights again with torch.save or safetensors"
        )
