"""Files of other formats are named as what they are, by their content."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.weights import read_weights_file


def torchscript() -> bytes:
    buffer = io.BytesIO()
    program = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(program, buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


def npz(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, a=np.zeros(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def zip_with(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


ONNX = "is an ONNX model: convert its tensors to a state dict"
CORE_ML = "is a Core ML model"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "TorchScript": (torchscript, "is a TorchScript program (torch.jit.save): its code is not run"),
    "torch.export": (exported, "is a program of torch.export: save its weights"),
    "npz": (lambda: npz(np.savez), "is an archive of NumPy arrays (.npz): convert them"),
    "packed npz": (lambda: npz(np.savez_compressed), "is an archive of NumPy arrays (.npz)"),
    "npy": (npy, "is an array of NumPy (.npy)"),
    "Keras": (lambda: zip_with("config.json", "model.weights.h5"), "is a Keras model"),
    "SavedModel": (lambda: zip_with("m/saved_model.pb"), "is a SavedModel of TensorFlow"),
    "zip": (lambda: zip_with("a/model.pth"), "is a zip archive of 1 files ('a/model.pth')"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file, as Keras writes"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00" + bytes(50), "is a GGUF file"),
    "TFLite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(50), "is a TensorFlow Lite model"),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch" + bytes(99), ONNX),
    "ONNX, newer": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x052.7.0:\xf3\x01", ONNX),
    "ONNX without producer": (lambda: b"\x08\x08:\x80\x02abc", ONNX),
    "Core ML": (lambda: b"\x08\x04\x12\xa4\x02\x0a\x20\x0a\x05image", CORE_ML),
    "Flax": (lambda: b"\x81\xa6params\x87\xa5conv1", "is a msgpack file, as Flax writes"),
    "Flax, many": (lambda: b"\xde\x00\x15\xa5conv1\x81", "is a msgpack file, as Flax writes"),
    "OpenVINO": (lambda: b'<?xml version="1.0"?>\n<net name="x">', "is a graph of OpenVINO"),
    "gzip": (lambda: gzip.compress(b"x"), "is compressed by gzip: unpack it"),
    "tar": (tar, "is a tar archive"),
    "index": (lambda: b'{"weight_map": {}}', "is the index of weights that are split"),
    "JSON": (lambda: b'{"architecture": "x"}', "is a JSON text: name the weights file"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n", "is an image: name the weights file"),
    "scikit-learn": (lambda: pickle.dumps(LogisticRegression()), "is a pickle of scikit-learn"),
    "NumPy pickle": (lambda: pickle.dumps({"w": np.zeros(3)}), "is a pickle without tensors"),
    "text": (lambda: b"hello", "is damaged, or neither a file of torch.save nor of safetensors"),
}


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "weights"])
@pytest.mark.parametrize("kind", FILES)
def test_other_formats_are_named_by_their_content(tmp_path: Path, kind: str, name: str) -> None:
    write, expected = FILES[kind]
    file = tmp_path / name
    file.write_bytes(write())
    with pytest.raises(InputError) as error:
        read_weights_file(file)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"text"}))
def test_a_suffix_of_safetensors_does_not_hide_the_format(tmp_path: Path, kind: str) -> None:
    write, expected = FILES[kind]
    file = tmp_path / "w.safetensors"
    file.write_bytes(write())
    with pytest.raises(InputError) as error:
        read_weights_file(file)
    assert expected in str(error.value)
