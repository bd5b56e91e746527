"""What git knows about code."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 5


@dataclass(frozen=True)
class Commit:
    """A commit, and whether the files of the package differ from it, new ones included."""

    name: str
    is_changed: bool


def commit_of_package() -> Commit | None:
    """Return the commit that this package is checked out from.

    None for an installed package, outside a repository, and where git is missing or fails, as it
    does for a repository of another user.
    """
    folder = Path(__file__).resolve().parents[1]
    # An environment may lie in the repository of something else, which does not track it.
    if git_output(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    name = git_output(folder, "rev-parse", "HEAD")
    changes = git_output(folder, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    if name is None or changes is None:
        return None
    return Commit(name, bool(changes))


def git_output(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints in a folder; None where it fails or there is no git."""
    # `status` would otherwise lock the index, and a git command of the user would fail meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
