"""What is reported of the links in a folder of images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.sources.files import SourceFile, leads_nowhere
from pu_kd_pipeline.masking import visible_name

logger = logging.getLogger(__name__)

HOW_TO_FOLLOW = (
    "set `follow_links: true` on the source to read what they lead to, or give the real folder as "
    "`path`"
)


def is_broken_link(path: str) -> bool:
    """Return whether a path is a link to nothing, or in a circle."""
    if not os.path.islink(path):
        return False
    try:
        os.stat(path)
    except OSError as exc:
        return leads_nowhere(exc)
    return False


def check_links(files: Sequence[SourceFile], source_path: str) -> None:
    """Warn of links that are not followed and of broken ones: an entire class may be behind one.

    Raises:
        InputError: there is nothing else.
    """
    unfollowed = [file.path for file in files if file.fault == Reason.LINK]
    broken = [file.path for file in files if file.fault == Reason.BROKEN_LINK]
    problems = []
    if unfollowed:
        problems.append(
            f"{len(unfollowed):,} links, such as {visible_name(unfollowed[0])!r}, lead to folders "
            f"or out of {source_path} and are not followed: {HOW_TO_FOLLOW}"
        )
    if broken:
        problems.append(
            f"{len(broken):,} links, such as {visible_name(broken[0])!r}, lead to nothing: fetch "
            "the files (as with `dvc pull` or `git annex get`), or correct the links"
        )
    if not problems:
        return
    message = f"{source_path}: {'; and '.join(problems)}"
    if len(unfollowed) + len(broken) == len(files):
        raise InputError(f"{message}. There is no other image")
    logger.warning(message)
