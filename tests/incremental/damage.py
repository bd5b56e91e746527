"""Damage to files as broken disks, killed copies and foreign hands leave it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

MAX_CHANGES_BETWEEN_RUNS = 4
POSITIONS = st.floats(0, 1, exclude_max=True)
DAMAGES = ("flip", "cut", "extend", "empty", "remove", "swap", "folder")


def is_change_allowed(machine: Any) -> bool:
    """Return whether a state machine may change something more before its next run.

    Hypothesis leaves out some rules in each example, and would otherwise often run nothing.
    """
    return bool(machine.n_changes < MAX_CHANGES_BETWEEN_RUNS)


def random_runs(n_steps: int, n_examples: int) -> settings:
    """Return the settings of a state machine, of which the first example is the simplest one."""
    return settings(
        max_examples=n_examples,
        stateful_step_count=n_steps,
        # Shrinking would repeat the runs for minutes; the printed steps show the failure.
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def files_to_damage(data: Path) -> list[Path]:
    """Return the files of a data folder, without locks."""
    found = data.rglob("*")
    return sorted(path for path in found if path.is_file() and path.suffix != ".lock")


def damage(files: Sequence[Path], where: float, place: float, kind: str) -> None:
    """Damage one of some files.

    Args:
        files: those that may be damaged; without any, nothing happens.
        where: in [0, 1), which of them.
        place: in [0, 1), where in the file, or which other file it is swapped for.
        kind: one of `DAMAGES`.
    """
    if not files:
        return
    file = files[int(where * len(files))]
    content = bytearray(file.read_bytes())
    position = int(place * len(content))
    if kind == "flip" and content:
        content[position] ^= 0xFF
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[:position])
    elif kind == "extend":
        file.write_bytes(bytes(content) + b"\0")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "swap":
        other = files[int(place * len(files))]
        file.write_bytes(other.read_bytes())
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "remove":
        file.unlink()
