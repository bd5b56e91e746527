"""The engine of the node that runs, for trainings, whose blocks do not hold it, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.storage.atomic import remove_empty_folder

# A context variable, as that of checkpoints: trainings are called deep inside of stages.
_engine: ContextVar[EngineParams] = ContextVar("engine", default=LOCAL)


def set_engine(engine: EngineParams) -> None:
    """Set where the workers of later trainings are: on a Ray cluster, or else on this machine."""
    _engine.set(engine)


def current_engine() -> EngineParams:
    """Return what was set last."""
    return _engine.get()


# Where the work of a node can be sent through a file that the workers of all machines see.
_shared_folder: ContextVar[Path | None] = ContextVar("shared_folder", default=None)


def set_shared_folder(folder: Path | None) -> None:
    """Set a folder for files that all workers read, which no other node and no other run uses."""
    _shared_folder.set(folder)


@contextmanager
def shared_folder() -> Iterator[Path | None]:
    """Yield what was set last, as an existing folder; it is removed if it is empty afterwards.

    Outside of Kedro it is None.
    """
    folder = _shared_folder.get()
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        remove_empty_folder(folder)
