"""The trials of a pilot as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pu_kd_pipeline.pilot.halving import Trial


def trials_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """Return trials as a table; the answers for the yardstick's images are lists."""
    rows = []
    for trial in trials:
        row = dict(vars(trial))
        row["is_equal"] = trial.is_equal.tolist()
        row["divergence"] = trial.divergence.tolist()
        rows.append(row)
    return pd.DataFrame(rows)


def trials_of(table: pd.DataFrame) -> list[Trial]:
    """Return the inverse of `trials_table`."""
    trials = []
    for row in table.to_dict("records"):
        facts = {str(name): value for name, value in row.items()}
        # A column without any text is read as one of numbers.
        facts["failure"] = row["failure"] if isinstance(row["failure"], str) else None
        facts["is_equal"] = np.asarray(row["is_equal"], dtype=np.bool_)
        facts["divergence"] = np.asarray(row["divergence"], dtype=np.float64)
        trials.append(Trial(**facts))
    return trials
