"""What the student of a method starts from, where that is not a new network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.few_sample_starts import State, check_fskd, fitnet_start, fskd_start


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the state that a student starts from is made, and what is left to distill."""

    make: Callable[[Model, ImageStore, DistillationParams, float], tuple[State, DistillationParams]]
    """(teacher, labeled images, parameters, hint share) -> the state, and the parameters with which
    the student is distilled from there."""
    check: Callable[[Model, DistillationParams], None] | None = None
    """Raises ValueError where (teacher, parameters) allow no such start; called before any cell."""


def _start_fitnet(
    teacher: Model, labeled: ImageStore, params: DistillationParams, hint_share: float
) -> tuple[State, DistillationParams]:
    n_updates = params.n_updates
    # At least one update for each of the two phases.
    n_hints = max(1, round(hint_share * n_updates))
    n_hints = min(n_hints, n_updates - 1)
    state = fitnet_start(teacher, labeled, params, n_hints)
    # Both phases together get as many updates as every other student, or the comparison would
    # favor this one.
    n_left = n_updates - n_hints
    return state, params.model_copy(update={"n_updates": n_left})


def _start_fskd(
    teacher: Model, labeled: ImageStore, params: DistillationParams, _hint_share: float
) -> tuple[State, DistillationParams]:
    state = fskd_start(teacher, labeled, params)
    return state, params


STARTS: dict[str, Start] = {
    "fitnet": Start(make=_start_fitnet),
    "fskd": Start(make=_start_fskd, check=check_fskd),
}


def check_starts(names: set[str]) -> None:
    """Check that exactly the methods with a start of their own are given.

    Raises:
        RuntimeError: a start is missing, or belongs to no method.
    """
    expected = {name for name, method in METHODS.items() if method.has_own_start}
    missing = sorted(expected - names)
    unused = sorted(names - expected)
    if missing:
        raise RuntimeError(f"STARTS lacks the methods {', '.join(missing)}: add an entry for each")
    if unused:
        raise RuntimeError(
            f"STARTS has entries for {', '.join(unused)}: set has_own_start in METHODS, "
            "or remove them"
        )


# At import: a comparison would otherwise find a missing start after hours, at its first such cell.
check_starts(set(STARTS))
