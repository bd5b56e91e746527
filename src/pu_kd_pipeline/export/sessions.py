"""ONNX Runtime on the CPU: exported students as functions of pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.graph import LOGITS, PIXELS

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Logits = Callable[[np.ndarray], np.ndarray]
"""Maps (N, H, W, C) uint8 pixels to (N, K) float32 logits."""
_ERRORS_ONLY = 3  # of ONNX Runtime's log


def open_session(model: bytes | Path, n_threads: int | None = 1) -> InferenceSession:
    """Return a session of a model, on the CPU.

    Args:
        model: a file, or its content.
        n_threads: that it uses; None: one per core.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads or 0
    options.log_severity_level = _ERRORS_ONLY
    content = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # it has a class of errors for each status
        shown = model if isinstance(model, Path) else "the exported student"
        raise InputError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {shown} ({exc}): run "
            "`kedro run --pipeline=export` again, or set export.opset to a lower version"
        ) from exc


def fingerprint_of(session: InferenceSession) -> str | None:
    """Return the fingerprint of the student in a model's metadata; None: it has none."""
    texts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return texts.get("student_fingerprint")


def session_logits(session: InferenceSession) -> Logits:
    """Return the function that a session computes."""

    def logits(pixels: np.ndarray) -> np.ndarray:
        [found] = session.run([LOGITS], {PIXELS: pixels})
        return np.asarray(found)

    return logits
