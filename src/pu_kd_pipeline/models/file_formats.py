"""Recognizing files that are not weights of PyTorch, by their content and never by their name.

The readers of weights would call such a file damaged or dangerous, which is misleading.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path

from pu_kd_pipeline.errors import InputError

_START_BYTES = 1024  # enough to recognize the kind of a file
_TAR_MAGIC_AT = 257
_LARGEST_HEADER_BYTES = 100_000_000  # of safetensors, whose reader refuses more

_DOWNLOAD_AGAIN = "download the weights again, and look at what the address answers"
_SAVE_STATE_DICT = "save the network's state dict with torch.save or safetensors"
_CONVERT = (
    "convert its tensors to a state dict of the PyTorch network that `architecture` names, and "
    "save that with torch.save or safetensors"
)
_UNPACK = "unpack it, and name the weights file that is in it"

# The first bytes of a file -> what it is, and the way to weights that can be read.
_STARTS: dict[bytes, tuple[str, str]] = {
    b"\x93NUMPY": ("an array of NumPy (.npy)", _CONVERT),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras writes", _CONVERT),
    b"GGUF": ("a GGUF file of llama.cpp", _CONVERT),
    b"\x12\x01\x00\x00\x00\x00\x00\x00": ("a parameter file of MXNet", _CONVERT),
    b"model_checkpoint_path:": ("the index of a TensorFlow checkpoint", _CONVERT),
    b"ptrt": ("an engine of TensorRT", "use the network that the engine was built from"),
    b"ftrt": ("an engine of TensorRT", "use the network that the engine was built from"),
    b"\x1f\x8b": ("compressed by gzip", _UNPACK),
    b"\x78\x9c": ("compressed by zlib, as joblib does", _UNPACK),
    b"\x78\x01": ("compressed by zlib, as joblib does", _UNPACK),
    b"\x78\x5e": ("compressed by zlib, as joblib does", _UNPACK),
    b"\x78\xda": ("compressed by zlib, as joblib does", _UNPACK),
    b"BZh": ("compressed by bzip2", _UNPACK),
    b"\xfd7zXZ\x00": ("compressed by xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x89PNG": ("an image", "name the weights file"),
    b"\xff\xd8\xff": ("an image", "name the weights file"),
    b"%PDF": ("a PDF document", "name the weights file"),
    b"version https://git-lfs": (
        "a pointer of Git LFS and not the weights",
        "fetch them with `git lfs pull`",
    ),
}
# Magic words of FlatBuffers, which follow four bytes.
_FLATBUFFERS = {
    b"TFL3": ("a TensorFlow Lite model", _CONVERT),
    b"ET12": ("a program of ExecuTorch", "use the network that the program was exported from"),
}
_WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
_TORCHSCRIPT = (
    "a TorchScript program (torch.jit.save)",
    "its code is not run; save its weights: "
    'torch.save(torch.jit.load(path, map_location="cpu").state_dict(), "weights.pt")',
)
# A file in a zip archive, as the end of its name -> what the archive is, and the way out.
_ARCHIVED: dict[str, tuple[str, str]] = {
    "constants.pkl": _TORCHSCRIPT,
    "archive_format": (
        "a program of torch.export",
        'save its weights: torch.save(torch.export.load(path).state_dict, "weights.pt")',
    ),
    ".npy": (
        "an archive of NumPy arrays (.npz)",
        "convert them: torch.save({name: torch.from_numpy(array) for name, array in "
        'numpy.load(path).items()}, "weights.pt")',
    ),
    ".h5": ("a Keras model", _CONVERT),
    "saved_model.pb": ("a SavedModel of TensorFlow", _CONVERT),
    ".mlmodel": ("a Core ML package", _CONVERT),
    "mlmodel": ("a Core ML package", _CONVERT),
}


def is_safetensors(start: bytes) -> bool:
    """Return whether a file starts as safetensors do: the size of the header, and JSON."""
    if len(start) < 9:
        return False
    (header_bytes,) = struct.unpack("<Q", start[:8])
    return start[8:9] == b"{" and header_bytes <= _LARGEST_HEADER_BYTES


def start_of(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            return file.read(_START_BYTES)
    except OSError as exc:
        raise InputError(f"{path} cannot be opened ({exc}): check that it may be read") from exc


def refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise an InputError that says what a file is, if that is neither torch's nor safetensors.

    Args:
        path: the file.
        start: from `start_of`.
    """
    if not start:
        raise InputError(f"{path} is empty: {_DOWNLOAD_AGAIN}")
    if is_safetensors(start):
        return
    text = start.lstrip().lower()
    if text.startswith(_WEB_PAGE_STARTS):
        # OpenVINO keeps the graph in XML, and the weights in a .bin file next to it.
        if b"<net " in text:
            raise _other_format(path, "a graph of OpenVINO", _CONVERT)
        raise InputError(f"{path} holds a web page in the place of weights: {_DOWNLOAD_AGAIN}")

    found = _known_start(start)
    if found is None and zipfile.is_zipfile(path):
        found = _known_archive(path)
    if found is None:
        found = _known_structure(start)
    if found is not None:
        raise _other_format(path, *found)


def _other_format(path: Path, what: str, way_out: str) -> InputError:
    return InputError(f"{path} is {what}: {way_out}")


def _known_start(start: bytes) -> tuple[str, str] | None:
    for magic, found in _STARTS.items():
        if start.startswith(magic):
            return found
    return _FLATBUFFERS.get(start[4:8])


def _known_archive(path: Path) -> tuple[str, str] | None:
    """Return what a zip archive is; None for those of torch.save and for damaged ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # A damaged directory is the business of torch's reader.
    except Exception:
        return None
    for ending, found in _ARCHIVED.items():
        if any(name.endswith(ending) for name in names):
            return found
    if any(name.endswith("data.pkl") for name in names):
        return None
    first_names = ", ".join(repr(name[:60]) for name in names[:3])
    return f"a zip archive of {len(names)} files ({first_names or 'none'})", _UNPACK


def _known_structure(start: bytes) -> tuple[str, str] | None:
    """Return what a file without a magic number is, as far as its first bytes show that."""
    if start[_TAR_MAGIC_AT:].startswith(b"ustar"):
        return (
            "a tar archive, as torch wrote before version 0.2 and as tar packs files",
            f"{_UNPACK}, or load it with that version and {_SAVE_STATE_DICT}",
        )
    protobuf = _known_protobuf(start)
    if protobuf is not None:
        return protobuf, _CONVERT
    if _is_msgpack_of_names(start):
        return "a msgpack file, as Flax writes", _CONVERT
    if start.lstrip()[:1] in (b"{", b"["):
        return _known_json(start)
    return None


def _known_protobuf(start: bytes) -> str | None:
    """Return the name of a model format that is a protobuf message with a version in front.

    ONNX, Core ML and TensorFlow's SavedModel all start with a small number as field 1.
    """
    if len(start) < 4 or start[0] != 0x08 or not 0 < start[1] < 0x20:
        return None
    tag = start[2]
    # Fields 2 to 8 of ONNX are texts and messages; field 5 is a number.
    if tag not in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
        return None
    if tag != 0x12:
        return "an ONNX model"
    # Field 2 of ONNX is the name of its producer, and a message in the other two.
    length = start[3]
    producer = start[4 : 4 + length]
    if length < 0x80 and producer.isascii() and producer.decode("ascii").isprintable():
        return "an ONNX model"
    if start[1] == 1 and length >= 0x80:
        return "a SavedModel of TensorFlow or a Core ML model"
    return "a Core ML model"


def _is_msgpack_of_names(start: bytes) -> bool:
    """Return whether a file starts as a msgpack map whose first key is a name.

    A pickle may start with 0x80, which is a map without entries, so that one does not count.
    """
    match = re.match(rb"(?:[\x81-\x8f]|\xde..)([\xa1-\xbf]|\xd9.)", start, re.DOTALL)
    if match is None:
        return False
    marker = match.group(1)
    length = marker[-1]
    if marker[0] != 0xD9:
        length -= 0xA0
    key = start[match.end() : match.end() + length]
    return len(key) == length and key.isascii() and key.decode("ascii").isprintable()


def _known_json(start: bytes) -> tuple[str, str] | None:
    if b'"weight_map"' in start or b'"total_size"' in start:
        return (
            "the index of weights that are split into several files",
            f"load all of them, and {_SAVE_STATE_DICT}",
        )
    try:
        json.loads(start)
    except UnicodeDecodeError:
        return None
    # The start of a longer JSON text does not parse; that it is text at all is enough.
    except ValueError:
        return "a text", "name the weights file"
    return "a JSON text", "name the weights file"
