"""Paths in parameters: one way to read them, for whoever opens, checks or fingerprints the files.

Variables of the environment in a path are not expanded: write `${oc.env:NAME}` in the YAML file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pu_kd_pipeline.errors import InputError

# A variable of the environment, because processes that this one starts inherit it.
PROJECT_VARIABLE = "PU_KD_PROJECT_FOLDER"
# `file://localhost/a`, `file:///a` and `file:a` are paths; fsspec calls the same `local`, too.
_FILE_SCHEME = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_DRIVE = re.compile(r"/[a-zA-Z]:")  # as in `file:///C:/a`
# `s3://a`, or a chain of fsspec such as `simplecache::s3://a`. A drive has one letter.
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(?:://|::)")
_CHAIN = "::"


def set_project_folder(folder: Path) -> None:
    """Set where relative paths start, for this process and those that it starts from now on."""
    os.environ[PROJECT_VARIABLE] = str(folder.absolute())


def project_folder() -> Path:
    """Return where relative paths start: the project, or the working directory if none is set."""
    folder = os.environ.get(PROJECT_VARIABLE)
    if folder is None:
        return Path.cwd()
    return Path(folder)


def is_url(text: str) -> bool:
    """Return whether a path is a URL that fsspec opens; one of a local file is a path.

    A path with `::` in the name of a file or folder that exists is a path, and no chain of URLs.
    """
    if _CHAIN in text:
        return _URL.match(text) is not None and not _is_name_with_chain(text)
    return _FILE_SCHEME.match(text) is None and _URL.match(text) is not None


def _is_name_with_chain(text: str) -> bool:
    """Return whether the file or folder whose name has the first `::` exists."""
    before, chain, after = text.partition(_CHAIN)
    rest_of_name, _, _ = after.partition("/")
    return os.path.lexists(resolved_path(f"{before}{chain}{rest_of_name}"))


def resolved_path(text: str) -> Path:
    """Return the absolute path that a local path in a parameter means.

    `~` and `~user` are home folders, a relative path starts at the project folder, and `file://`
    is left out; nothing else in a URL is decoded. Links and `..` stay as they are.

    Raises:
        InputError: there is no such user.
    """
    scheme = _FILE_SCHEME.match(text)
    path = text
    if scheme is not None:
        path = text[scheme.end() :]
    if _DRIVE.match(path) and os.name == "nt":
        path = path[1:]
    try:
        expanded = Path(path)
        # Not for `./~a`, a file of that name, from which pathlib removes the dot.
        if path.startswith("~"):
            expanded = expanded.expanduser()
    except RuntimeError as exc:
        raise InputError(f"{text!r} is not a path ({exc}): write the folder itself") from exc
    return project_folder() / expanded


def resolved_location(text: str) -> str:
    """Return a local path as `resolved_path`, and a URL as fsspec takes it.

    A chain such as `zip://*.png::images.zip` may end in a local path, which is resolved, too.

    Raises:
        InputError: there is no such user.
    """
    if not is_url(text):
        return str(resolved_path(text))
    outer, chain, last = text.rpartition(_CHAIN)
    # The name of a protocol alone stands for what its file system calls the root.
    is_protocol = last.isalpha() and last.islower()
    if not chain or not last or is_protocol or is_url(last):
        return text
    return f"{outer}{chain}{resolved_path(last)}"
