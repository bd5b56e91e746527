"""Reading weights from untrusted files, safely."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


_START_BYTES = 64  # enough to recognize the kind of a file
# The entry of the metadata that holds the digest of the tensors. Key and value both tell that it is
# there, so that weights in which one of them is damaged are not taken for those of other programs.
# A single entry, because safetensors writes several in random order.
_DIGEST_KEY = "pu_kd_pipeline.digest"
_DIGEST_PREFIX = "pu_kd_pipeline.sha256:"


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, with a digest that is verified when it is read.

    Args:
        state: tensors on the CPU that share no memory.
        path: the file.
    """
    from safetensors.torch import save_file

    save_file(dict(state), path, {_DIGEST_KEY: _tensors_digest(state)})


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
    from safetensors import SafetensorError, safe_open
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
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except known_errors as exc:
        raise InputError(f"{path} is not a readable safetensors file: {exc}") from exc
    if _has_digest(metadata) and metadata.get(_DIGEST_KEY) != _tensors_digest(state):
        raise InputError(
            f"{path} is damaged or was edited (its digest is wrong): delete its folder, and run "
            "the stage that wrote it again"
        )
    return state


def _has_digest(metadata: Mapping[str, str]) -> bool:
    """Return whether `save_weights` wrote weights with this metadata."""
    is_value = any(value.startswith(_DIGEST_PREFIX) for value in metadata.values())
    return is_value or _DIGEST_KEY in metadata


def _tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Return the digest of the names, types, shapes and values of tensors."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        digest.update(about.encode())
        # As bytes: NumPy does not know all types of torch, such as bfloat16.
        values = tensor.contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return _DIGEST_PREFIX + digest.hexdigest()


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
