"""The evaluated student as files: written, checked on all test images, and described."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline import __version__
from pu_kd_pipeline.certificate import check_is_of
from pu_kd_pipeline.devices import cpu_name, inference_batch_size
from pu_kd_pipeline.errors import InputError, first_line
from pu_kd_pipeline.export import graph, packages
from pu_kd_pipeline.export.parity import (
    Difference,
    check_alone,
    check_logits,
    check_parity,
    difference,
    is_comparable,
    largest_allowed,
    largest_logit,
    logits_of,
)
from pu_kd_pipeline.export.preprocessing import PREPROCESSING_FILE, preprocessing
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.certified import share_of
from pu_kd_pipeline.learning.latency import Latency, measure_latencies
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.models.weights import tensor_bytes
from pu_kd_pipeline.params.export import ExportParams

if TYPE_CHECKING:
    from pu_kd_pipeline.export.fine_tuning import TuningImages
    from pu_kd_pipeline.export.quantization import CalibrationImages

logger = logging.getLogger(__name__)

VERSION = 1
CERTIFICATE_FILE = "certificate.json"
PREDICT_FILE = "predict.py"
FILES = {
    "onnx": "student.onnx",
    "int8": "student_int8.onnx",
    "torch_export": "student.pt2",
    "safetensors": "student.safetensors",
}
_METADATA_KEY = "pu_kd_pipeline"  # in student.safetensors; its value is JSON
# A cost of int8 in accuracy or agreement above this many points is pointed out.
_COSTLY_POINTS = 0.5

Files = dict[str, bytes]


def export_student(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    certificate: Mapping[str, Any],
    manifests: Mapping[str, pd.DataFrame | None],
    stores: Mapping[str, ImageStore],
    training_images: ImageStore,
    params: ExportParams,
) -> tuple[Files, dict[str, Any]]:
    """Return the files of a student by name, and the report on them, as JSON can hold it.

    Args:
        teacher: the teacher.
        student: the student that `certificate` is about.
        test_images: all of them are compared.
        certificate: result of `certificate.make_certificate`.
        manifests: by name, None for one that does not exist.
        stores: by the origin that manifests name.
        training_images: those that the teacher, and a student of `critic_distillation`, learned
            from.
        params: the block `export`.

    Raises:
        InputError: packages are missing, the certificate is about something else, the student
            cannot be exported, or a file does not compute what the student does.
    """
    packages.check_packages(params.formats, "export.formats")
    check_is_of(certificate, teacher, student, test_images, "export")
    task = _Task(student, test_images, certificate, params)
    if "safetensors" in params.formats:
        task.add_weights()
    if set(params.formats) - {"safetensors"}:
        task.add_graphs()
    if "int8" in params.formats:
        # imported late: onnx and onnxruntime are in an extra
        from pu_kd_pipeline.export.quantization import choose_calibration_images

        images = choose_calibration_images(
            student.card,
            manifests,
            stores,
            training_images,
            params.calibration_images,
            params.seed,
        )
        # More images of the same kind, of which those that calibrate are left out below.
        tuning = params.fine_tuning
        more = choose_calibration_images(
            student.card,
            manifests,
            stores,
            training_images,
            params.calibration_images + tuning.n_images + tuning.n_checked,
            params.seed,
        )
        task.add_int8(teacher, images, more)
    if {"onnx", "int8"} & set(params.formats):
        task.add_script()
    task.measure(teacher)
    return task.files, task.report()


class _Task:
    """The files that have been made of a student, and what was found.

    Args:
        student: the student.
        test_images: what files are checked on.
        certificate: about the student.
        params: the block `export`.
    """

    def __init__(
        self,
        student: Model,
        test_images: ImageStore,
        certificate: Mapping[str, Any],
        params: ExportParams,
    ) -> None:
        self._student = student
        self._images = test_images
        self._ids = test_images.index["id"].tolist()
        self._certificate = certificate
        self._params = params
        # Files are float32 on the CPU, and so is what they are compared with.
        self._compute = params.compute.model_copy(update={"device": "cpu", "precision": "float32"})
        self._batch_size = inference_batch_size(
            self._compute, torch.device("cpu"), student.image_shape
        )
        self._facts = preprocessing(student.card, _fingerprints(certificate))
        self.files: Files = {
            PREPROCESSING_FILE: _json_bytes(self._facts),
            CERTIFICATE_FILE: _json_bytes(certificate),
        }
        self._float_logits = predict_logits(student, test_images, self._compute).numpy()
        check_logits(self._float_logits, self._ids)
        self._allowed = largest_allowed(self._float_logits, params.tolerance)
        self._parity: dict[str, Any] = {}
        # Rows of test images that get another class by any file in float32
        self._changed: set[int] = set()
        self._int8: dict[str, Any] | None = None
        self._onnx = b""
        # By the name of the row in the report
        self._logits = {"student": self._float_logits}
        self._passes: dict[str, Callable[[], Any]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._warnings: list[str] = []

    def add_weights(self) -> None:
        """Add the weights alone, and read them back."""
        from safetensors.torch import load, save

        state = {}
        for name, tensor in self._student.network.state_dict().items():
            # Cloned: safetensors refuses tensors that share memory, as tied weights do.
            state[name] = tensor.detach().cpu().contiguous().clone()
        # A single entry, because safetensors writes several in random order.
        metadata = {_METADATA_KEY: json.dumps(self._metadata(), ensure_ascii=False)}
        content = save(state, metadata=metadata)
        self.files[FILES["safetensors"]] = content
        loaded = load(content)
        # Compared as bytes: NaN equals itself then.
        written = {name: tensor_bytes(tensor) for name, tensor in state.items()}
        if written != {name: tensor_bytes(tensor) for name, tensor in loaded.items()}:
            raise InputError("export: student.safetensors does not hold the student's weights")
        self._parity["safetensors"] = {"n_tensors": len(state), "is_equal": True}

    def add_graphs(self) -> None:
        """Add the graphs in float32, and compare them with the student."""
        program = graph.trace(self._student)
        if "torch_export" in self._params.formats:
            content = graph.program_bytes(program, self._facts)
            self.files[FILES["torch_export"]] = content
            network = graph.load_program(content)

            def by_torch(pixels: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    found: torch.Tensor = network(torch.from_numpy(pixels))[0]
                return found.numpy()

            self._check("torch_export", by_torch)
        if {"onnx", "int8"} & set(self._params.formats):
            from pu_kd_pipeline.export.sessions import open_session, session_logits

            model = graph.onnx_model(program, self._params.opset)
            self._onnx = graph.with_facts(model, self._metadata())
            by_onnx = session_logits(open_session(self._onnx))
            if "onnx" in self._params.formats:
                self.files[FILES["onnx"]] = self._onnx
                self._check("onnx", by_onnx)
            else:  # int8 is made from it.
                self._checked_logits(f"the float32 graph of {FILES['int8']}", by_onnx)

    def add_int8(self, teacher: Model, images: CalibrationImages, more: CalibrationImages) -> None:
        """Add the int8 model; where int8 costs too much, that of the fine-tuned student.

        Args:
            teacher: whose classes count.
            images: those that calibrate it.
            more: images to check it on, and to fine-tune with.
        """
        from pu_kd_pipeline.export.fine_tuning import split_images
        from pu_kd_pipeline.export.sessions import open_session, session_logits

        tuning = split_images(more, images, self._params.fine_tuning.n_checked, self._params.seed)
        content, fine_tuning = self._int8_content(teacher, images, tuning)
        self.files[FILES["int8"]] = content
        compute = session_logits(open_session(content))
        logits = logits_of(compute, self._images, self._batch_size, FILES["int8"])
        if not is_comparable(logits, self._float_logits):
            raise InputError(
                "export: student_int8.onnx computes no finite logits for some test images, or "
                "finite ones for classes that the student excludes: leave int8 out of "
                "export.formats"
            )
        found = difference(logits, self._float_logits)
        self._int8 = {
            "calibration": {"images": images.source, "n": len(images)},
            "fine_tuning": fine_tuning,
            **found.facts(self._ids),
        }
        self._add_row("int8", compute, logits)

    def _int8_content(
        self, teacher: Model, images: CalibrationImages, tuning: TuningImages
    ) -> tuple[bytes, dict[str, Any]]:
        """Return the int8 model, and what was found before and after fine-tuning."""
        from pu_kd_pipeline.export.fine_tuning import fine_tune, predict_classes
        from pu_kd_pipeline.export.quantization import quantize

        params = self._params.fine_tuning
        classes = predict_classes(teacher, tuning.checked, self._params.compute)
        content = graph.with_facts(quantize(self._onnx, images), self._metadata())
        n_in_float32 = _n_agreed(self._onnx, tuning.checked, classes)
        n_agreed = _n_agreed(content, tuning.checked, classes)
        n_lost = n_in_float32 - n_agreed
        found = {
            "n_checked": len(classes),
            "n_agreed_float32": n_in_float32,
            "n_agreed": n_agreed,
            "n_agreed_after": None,
            "is_used": False,
            "failure": None,
        }
        is_costly = n_lost > params.above_points / 100 * len(classes)
        if not is_costly or not params.n_updates or not len(tuning.learned):
            return content, found
        logger.info(
            "export: of %d images that the student learned from, it gives the teacher's class for "
            "%d, and in int8 for %d: it is fine-tuned",
            len(classes),
            n_in_float32,
            n_agreed,
        )
        # Training needs float32, on any device.
        compute = self._params.compute.model_copy(update={"precision": "float32"})
        try:
            tuned = fine_tune(
                self._student, images, tuning.learned, params, compute, self._params.seed
            )
            facts = {**self._metadata(), "fine_tuning_updates": str(params.n_updates)}
            model = graph.onnx_model(graph.trace(tuned), self._params.opset)
            onnx = graph.with_facts(model, facts)
            tuned_content = graph.with_facts(quantize(onnx, images), facts)
            n_after = _n_agreed(tuned_content, tuning.checked, classes)
        # Of any kind: the code of the network may be a user's, and there is a file without it.
        except Exception as exc:
            self._warnings.append(
                f"The student could not be fine-tuned for int8 ({first_line(exc)}). "
                "student_int8.onnx has its own weights."
            )
            return content, {**found, "failure": first_line(exc)}
        # A gain of an image or two may be chance.
        is_used = n_after - n_agreed >= n_lost / 2
        if is_used:
            content = tuned_content
        return content, {**found, "n_agreed_after": n_after, "is_used": is_used}

    def add_script(self) -> None:
        """Add the script that predicts with ONNX Runtime."""
        import inspect

        from pu_kd_pipeline.export import predict

        self.files[PREDICT_FILE] = inspect.getsource(predict).encode()

    def measure(self, teacher: Model) -> None:
        """Compare all files with the teacher and with labels, and measure their latency."""
        of_teacher = predict_logits(teacher, self._images, self._params.compute)
        teacher_classes = of_teacher.argmax(dim=1).numpy()
        labels = self._images.index["label"]
        truth = None
        if not labels.isna().any():
            truth = labels.to_numpy(dtype=np.int64)
        for name, logits in self._logits.items():
            classes = logits.argmax(axis=1)
            row = self._rows.setdefault(name, {})
            row["agreement_with_teacher"] = share_of(classes == teacher_classes)._asdict()
            row["accuracy"] = None
            if truth is not None:
                row["accuracy"] = share_of(classes == truth)._asdict()
        for name, latency in self._latencies().items():
            self._rows[name] |= {"latency_ms": latency.ms, "latency_spread_ms": latency.spread_ms}
        certified = self._certificate["agreement"]["n_hits"]
        own = self._rows["student"]["agreement_with_teacher"]["n_hits"]
        if certified != own:
            self._warnings.append(
                "The certificate may have been made with another precision, device or version of a "
                f"library: it counts {certified:,} test images for which the student gives the "
                f"teacher's class, and in float32 on this CPU these are {own:,}."
            )
        if self._int8 is not None:
            self._warnings += _costs_of_int8(self._rows)

    def report(self) -> dict[str, Any]:
        """Return what was found."""
        files = {}
        for name, content in self.files.items():
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return {
            "version": VERSION,
            "formats": list(self._params.formats),
            "opset": self._params.opset,
            "files": files,
            "images": {"store": "test_images", "n": len(self._images)},
            "parity": {
                "tolerance": self._params.tolerance,
                "allowed": self._allowed,
                "largest_logit": largest_logit(self._float_logits),
                "n_changed": len(self._changed),
                "files": self._parity,
            },
            "int8": self._int8,
            "models": self._rows,
            "hardware": cpu_name(),
            "warnings": self._warnings,
            "provenance": {
                **_fingerprints(self._certificate),
                "libraries": _libraries(self._params),
            },
        }

    def _check(self, name: str, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        logits, found = self._checked_logits(FILES[name], compute)
        self._parity[name] = found.facts(self._ids)
        self._changed.update(found.changed.tolist())
        self._add_row(name, compute, logits)

    def _checked_logits(
        self, file: str, compute: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, Difference]:
        """Return the logits of a graph in float32, which are those of the student."""
        logits = logits_of(compute, self._images, self._batch_size, file)
        found = difference(logits, self._float_logits)
        check_parity(file, found, self._allowed, self._ids)
        check_alone(compute, self._images, logits, self._allowed, file)
        return logits, found

    def _add_row(
        self, name: str, compute: Callable[[np.ndarray], np.ndarray], logits: np.ndarray
    ) -> None:
        self._logits[name] = logits
        image = self._images.read(np.arange(1)).transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(image)
        self._passes[name] = lambda: compute(pixels)

    def _latencies(self) -> dict[str, Latency]:
        """Return the latency of each graph for one image, from pixels to logits, in one thread."""
        network = graph.pixel_classifier(self._student)
        image = self._images.read(np.arange(1)).transpose(0, 2, 3, 1)
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        passes = {"student": lambda: network(pixels), **self._passes}
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return measure_latencies(passes, self._params.latency_repeats)
        finally:
            torch.set_num_threads(n_threads)

    def _metadata(self) -> dict[str, str]:
        """Return the metadata of ONNX and safetensors files: texts by name."""
        certificate = self._certificate
        fingerprints = {
            f"{name}_fingerprint": str(value)
            for name, value in _fingerprints(certificate).items()
            if value is not None
        }
        accuracy = certificate["accuracy"]
        return {
            "made_by": f"pu_kd_pipeline {__version__}",
            "classes": json.dumps(list(self._student.card.classes), ensure_ascii=False),
            "preprocessing": json.dumps(self._facts, ensure_ascii=False),
            "certified_agreement": json.dumps(certificate["agreement"]),
            "certified_accuracy": json.dumps(accuracy),
            "certificate_warnings": json.dumps(certificate["warnings"]),
            **fingerprints,
        }


def _n_agreed(content: bytes, images: CalibrationImages, classes: np.ndarray) -> int:
    """Return for how many images an ONNX file gives the (n,) classes."""
    from pu_kd_pipeline.export.sessions import open_session, session_logits

    compute = session_logits(open_session(content))
    found = [compute(pixels).argmax(axis=1) for pixels in images.batches()]
    return int((np.concatenate([*found, classes[:0]]) == classes).sum())


def _fingerprints(certificate: Mapping[str, Any]) -> dict[str, Any]:
    provenance = certificate["provenance"]
    return {
        name: provenance.get(name) for name in ("student", "teacher", "manifest", "test_images")
    }


def _libraries(params: ExportParams) -> dict[str, str]:
    from importlib.metadata import version

    names = ["torch", "safetensors"]
    if {"onnx", "int8"} & set(params.formats):
        names += ["onnx", "onnxruntime", "onnxscript"]
    return {"pu_kd_pipeline": __version__, **{name: version(name) for name in names}}


def _costs_of_int8(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a warning where int8 answers worse than the student."""
    for key, what in (
        ("accuracy", "accuracy"),
        ("agreement_with_teacher", "agreement with the teacher"),
    ):
        student = rows["student"][key]
        if student is None:
            continue
        points = 100 * (student["value"] - rows["int8"][key]["value"])
        if points > _COSTLY_POINTS:
            return [
                f"int8 costs {points:.1f} points of {what} on the test images: deploy "
                "student.onnx where these count."
            ]
    return []


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def exported_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the student in an exported folder; None: it has none."""
    try:
        facts = json.loads((folder / PREPROCESSING_FILE).read_text(encoding="utf-8"))
        return str(facts["provenance"]["student"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
