"""What a training gets from the process that starts its workers, and what comes back, as bytes.

Networks are written as model folders, as the catalog stores them: not every network can be pickled.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.params.compute import ComputeParams

TASK_FILE = "task.pickle"
RENDEZVOUS_FILE = "rendezvous"


@dataclass(frozen=True)
class Task:
    """A training that workers carry out.

    Attributes:
        function: of a module, that trains.
        args: its positional arguments.
        kwargs: its other arguments.
        code: `maker_fingerprint` of the function in the process that starts the workers.
        compute: device of the training.
        timeout_s: see `TrainingWorkersParams`.
        checkpoints: arguments of `set_checkpoint_folder`; None: no checkpoints.
        log_level: of the package's logger.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    code: str
    compute: ComputeParams
    timeout_s: float
    checkpoints: tuple[Path, float] | None
    log_level: int


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, folder: Path) -> None:
        # Without torch's shared memory, which is small in containers and ends with its process.
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._folder = folder

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Model | PUClassifier):
            return NotImplemented
        folder = self._folder / f"model-{uuid.uuid4().hex}"
        save_model(value, folder)
        load = load_model if isinstance(value, Model) else load_pu_classifier
        return load, (folder,)


def packed(value: Any, folder: Path) -> bytes:
    """Return a value for `pickle.loads`, while the folder exists.

    Args:
        value: to be sent to another process.
        folder: for networks.
    """
    buffer = BytesIO()
    _Pickler(buffer, folder).dump(value)
    return buffer.getvalue()
