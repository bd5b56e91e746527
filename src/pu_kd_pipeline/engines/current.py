"""The engine of the node that runs, for trainings, whose blocks do not hold it."""

from __future__ import annotations

from contextvars import ContextVar

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.params.engine import EngineParams

# A context variable, as that of checkpoints: trainings are called deep inside of stages.
_engine: ContextVar[EngineParams] = ContextVar("engine", default=LOCAL)


def set_engine(engine: EngineParams) -> None:
    """Set where the workers of later trainings are: on a Ray cluster, or else on this machine."""
    _engine.set(engine)


def current_engine() -> EngineParams:
    """Return what was set last."""
    return _engine.get()
