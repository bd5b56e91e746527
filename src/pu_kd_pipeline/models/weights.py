"""Reading weights from untrusted files, safely, and loading them into networks."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.file_formats import is_safetensors, refuse_other_formats, start_of
from pu_kd_pipeline.models.pickled_objects import (
    PickleFacts,
    load_tensors,
    read_pickle_facts,
)
from pu_kd_pipeline.models.state_dicts import (
    AmbiguousWeightsError,
    StateDict,
    candidates,
    choose,
    describe_content,
    needed_names,
    tensor_dicts,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

_TORCH_PROTOCOL = 2  # of the pickles that torch.save writes by default
_KNOWN_MODULES = ("torch.", "collections.")
_SAVE_STATE_DICT = 'torch.save(model.state_dict(), "weights.pt")'
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
    """Load weights into a network, refusing anything that does not fit exactly.

    Where the file holds more than a state dict, `state_dicts` says what is taken; the log says so,
    too.

    Raises:
        InputError: the file is missing, is not weights, holds several that fit, or has missing,
            extra, mis-shaped or non-finite tensors.
    """
    content = read_weights_file(path)
    expected = network.state_dict()
    state = _find_state(content, expected, path)
    faults = _weight_faults(state, expected)
    if faults:
        place = ""
        if state.place:
            place = f" ({state.place})"
        raise InputError(
            f"{path}{place}: the weights do not fit the architecture: {'; '.join(faults)}. "
            "Check `architecture`, `architecture_options`, `classes` and `input.channels`"
        )
    _log_choices(state, expected, path)
    # Counters of batches may be missing: the network's own stay, as in torch.
    network.load_state_dict({**expected, **state.tensors})


def _find_state(content: Any, expected: Mapping[str, Tensor], path: Path) -> StateDict:
    """Return the tensors of a file that are meant for a network, whether they fit or not."""
    if not tensor_dicts(content):
        raise _no_state_dict(content, path)
    found = candidates(content, expected)
    try:
        chosen = choose(found)
    except AmbiguousWeightsError as exc:
        raise InputError(
            f"{path} holds several weights that fit and differ: {exc}. Save the ones to use alone, "
            f"with {_SAVE_STATE_DICT}"
        ) from exc
    if chosen is not None:
        return chosen
    if found:
        return found[0]
    if read_pickle_facts(path).holds_network:
        raise _no_state_dict(content, path)
    names = _first_names(content)
    raise InputError(
        f"{path} holds none of the network's tensors: the network expects "
        f"{_first_few(needed_names(expected))}; the file has {names}. It holds "
        f"{describe_content(content)}. Check `architecture` and `architecture_options`"
    )


def _first_names(content: Any) -> str:
    """Return the first tensors of the largest dict of a file."""
    dicts = [tensors for _, tensors in tensor_dicts(content)]
    largest = max(dicts, key=len)
    return _first_few(list(largest))


def _no_state_dict(content: Any, path: Path) -> InputError:
    if read_pickle_facts(path).holds_network:
        return InputError(
            f"{path} holds a pickled network ({describe_content(content)}), and no state dict. "
            "Loading it would run code of its own, which is refused: where that code is "
            f"installed, load it and save its weights, {_SAVE_STATE_DICT}"
        )
    description = describe_content(content)
    way_out = f"save the network's weights, {_SAVE_STATE_DICT}"
    if "NumPy array" in description:
        way_out = "convert its arrays by torch.from_numpy, and save them with torch.save"
    return InputError(
        f"{path} holds no state dict (names with tensors), but {description}: {way_out}"
    )


def _weight_faults(state: StateDict, expected: Mapping[str, Tensor]) -> list[str]:
    """Return one line per kind of fault, with the names of the first few tensors."""
    odd: list[str] = []
    quantized: list[str] = []
    misshaped: list[str] = []
    not_finite: list[str] = []
    tensors = state.tensors
    for name in sorted(tensors):
        tensor = tensors[name]
        target = expected[name]
        if _is_quantized(tensor):
            quantized.append(f"{name} ({tensor.dtype})")
        elif not _is_plain(tensor, target):
            odd.append(name)
        elif tensor.shape != target.shape:
            misshaped.append(f"{name} {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        # Only of equal shape: a tensor of a few bytes may claim any size, and reading all of its
        # values would allocate that.
        elif not tensor.to(target.dtype).isfinite().all():
            not_finite.append(name)
    missing = [name for name in needed_names(expected) if name not in tensors]
    names_by_fault = {
        "missing": sorted(missing),
        "not part of it": sorted(state.left_over),
        "quantized, which has lost digits: use the weights before": quantized,
        "of another kind (sparse, complex, whole numbers or without values)": odd,
        "of another shape": misshaped,
        "not finite": not_finite,
    }
    return [f"{fault}: {_first_few(names)}" for fault, names in names_by_fault.items() if names]


def _first_few(names: list[str]) -> str:
    text = ", ".join(name[:200] for name in names[:5])
    if len(names) > 5:
        text += f" and {len(names) - 5} more"
    return text


def _is_quantized(tensor: Tensor) -> bool:
    # Floats of one byte come with scales in tensors of their own.
    has_one_byte = tensor.is_floating_point() and tensor.dtype.itemsize < 2
    return tensor.is_quantized or has_one_byte


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor has values that can be copied into `expected` without loss."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_complex() == expected.is_complex()
        and tensor.is_floating_point() >= expected.is_floating_point()
    )


def _log_choices(state: StateDict, expected: Mapping[str, Tensor], path: Path) -> None:
    """Log what was taken of a file that is not simply the network's state dict."""
    if state.place:
        logger.info("%s: the weights are taken from %s", path, state.place)
    if state.ignored:
        names = _first_few(list(state.ignored))
        logger.info("%s: not part of the network and not read: %s", path, names)
    converted: Counter[str] = Counter()
    for name, tensor in state.tensors.items():
        if tensor.dtype != expected[name].dtype:
            converted[f"{tensor.dtype} to {expected[name].dtype}"] += 1
    for conversion, n_tensors in converted.items():
        text = conversion.replace("torch.", "")
        logger.info("%s: %d tensors are converted from %s", path, n_tensors, text)


def read_weights_file(path: Path) -> Any:
    """Return the content of a safetensors file, or of a PyTorch file, without running code.

    The content decides the format, and not the name of the file. Objects in it that are neither
    tensors nor plain values are stand-ins, see `pickled_objects`.

    Raises:
        InputError: the file is missing or unreadable, unpacks to more than its size, is of another
            format, or is a pickle that would run code.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    start = start_of(path)
    refuse_other_formats(path, start)
    is_torch = start.startswith((b"PK", b"\x80")) or zipfile.is_zipfile(path)
    if is_safetensors(start) or (path.suffix == ".safetensors" and not is_torch):
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
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        digest.update(about.encode())
        digest.update(tensor_bytes(tensor))
    return _DIGEST_PREFIX + digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the values of a tensor, for a digest; of any type, on any device."""
    import torch

    # NumPy does not know all types of torch, such as bfloat16.
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().data


def _read_torch_file(path: Path) -> Any:
    _refuse_zip_bomb(path)
    facts = read_pickle_facts(path)
    dangerous = facts.dangerous_names
    if dangerous:
        raise _needs_code(path, f"it calls {_first_few(dangerous)}")
    try:
        return load_tensors(path, facts)
    except Exception as exc:
        raise _unreadable(path, facts) from exc


def _unreadable(path: Path, facts: PickleFacts) -> InputError:
    """Return the error for a file that torch refuses, with the likely reason."""
    if any(name.startswith("sklearn.") for name in facts.names):
        return InputError(
            f"{path} is a pickle of scikit-learn: a teacher is a network of PyTorch, with its "
            "weights"
        )
    if facts.holds_network:
        return _needs_code(path, "it holds a pickled network")
    foreign = [name for name in sorted(facts.names) if not name.startswith(_KNOWN_MODULES)]
    is_from_torch = any(name.startswith("torch.") for name in facts.names)
    if foreign and not is_from_torch:
        return _needs_code(path, f"it is a pickle without tensors of torch: {_first_few(foreign)}")
    if facts.protocol > _TORCH_PROTOCOL:
        return _needs_code(
            path,
            f"it is pickled with protocol {facts.protocol}, and torch.save writes protocol "
            f"{_TORCH_PROTOCOL}",
        )
    if foreign:
        return _needs_code(path, f"it holds {_first_few(foreign)}")
    return InputError(
        f"{path} is damaged, or neither a file of torch.save nor of safetensors: copy or download "
        "it again"
    )


def _needs_code(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} cannot be read without running code from it, which is refused: {what}. If you "
        "trust it, convert it: "
        'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
    )


def _refuse_zip_bomb(path: Path) -> None:
    """Raise an InputError for an archive whose parts are compressed or overlap.

    Torch never writes such archives. Nothing limits the size that they unpack to, and torch's
    reader sets no limit either.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as exc:
        raise _unreadable(path, PickleFacts()) from exc
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    unpacked_bytes = sum(part.file_size for part in parts)
    if is_packed or unpacked_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is a packed archive, which torch never writes and which could unpack to any "
            "size: save the weights again with torch.save or safetensors"
        )
