"""The commit of the code that runs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 5


@dataclass(frozen=True)
class Commit:
    """A commit, and whether the files differ from it."""

    name: str
    is_changed: bool


def commit_of_package() -> Commit | None:
    """Return the commit that this package is checked out from.

    None for an installed package, outside a repository, and without git.
    """
    folder = Path(__file__).resolve().parents[1]
    # An environment may lie in the repository of something else, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    name = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    if name is None or changes is None:
        return None
    return Commit(name, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None where it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
