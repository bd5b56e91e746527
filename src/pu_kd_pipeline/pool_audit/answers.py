"""The answers that the page of an audit saved: their form, and whose they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.paths import resolved_path
from pu_kd_pipeline.params.pool_audit import PoolAuditParams
from pu_kd_pipeline.pool_audit.drawing import DRAW, POOL, TEACHER

logger = logging.getLogger(__name__)

KIND = "pool_audit_answers"
VERSION = 1
YES = "yes"
NO = "no"
CANNOT_TELL = "cannot tell"
ANSWERS = (YES, NO, CANNOT_TELL)
FILE = "pool_audit_answers.json"
_SAVE_AGAIN = "save it again from 08_reporting/pool_audit.html in the data folder"


def find_answers(
    saved: Any, audit: pd.DataFrame, class_names: Sequence[str], params: PoolAuditParams
) -> pd.DataFrame | None:
    """Return the answers to an audit, see `checked_answers`; None: there are none yet.

    Args:
        saved: what the file in the usual place holds; None: there is none.
        audit: the images that were asked about.
        class_names: of the teacher.
        params: may name another file.

    Raises:
        InputError: the answers cannot be used.
    """
    if params.answers is not None:
        saved = read_answers(params.answers)
    if saved is None:
        logger.warning(
            "pool_audit: there are no answers yet. Open 08_reporting/pool_audit.html of the data "
            "folder in a browser, answer its %s images with y and n, put the file that it saves "
            "to 01_raw/%s of the data folder, and run `kedro run --pipeline=pool_audit` again",
            f"{len(audit):,}",
            FILE,
        )
        return None
    return checked_answers(saved, audit, class_names)


def read_answers(path: str) -> Any:
    """Return what a file of answers holds, as JSON.

    Raises:
        InputError: there is no such file, it is no JSON, or cannot be read.
    """
    try:
        text = resolved_path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"pool_audit.answers: there is no file {path}: answer all images of "
            "08_reporting/pool_audit.html in the data folder, and name the file that it saves, or "
            "set it to null"
        ) from None
    except (OSError, ValueError) as exc:
        raise InputError(f"pool_audit.answers: {path} cannot be read ({exc}): {_SAVE_AGAIN}") from (
            exc
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"pool_audit.answers: {path} is no JSON ({exc}): {_SAVE_AGAIN}") from exc


def checked_answers(content: Any, audit: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Return the images of an audit with their answers, in the audit's order.

    Args:
        content: what the file of answers holds.
        audit: the images that were asked about, from `drawing.draw_audit`.
        class_names: of the teacher.

    Returns:
        The columns of `audit`, `answer` (one of `ANSWERS`) and `class`, the number of the class
        that was chosen, which counts for the answer yes only.

    Raises:
        InputError: it is no such file, it answers another page, or answers are missing or unknown.
    """
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise InputError(f"{FILE} holds no answers of an audit: {_SAVE_AGAIN}")
    if content.get("version") != VERSION:
        raise InputError(
            f"{FILE}: version {content.get('version')!r} is not known, only {VERSION}: "
            f"{_SAVE_AGAIN}"
        )
    _check_is_of(content, audit)
    entries = content.get("answers")
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) for each in entries):
        raise InputError(f"{FILE}: `answers` is no list of answers: {_SAVE_AGAIN}")
    by_id: dict[Any, Mapping[str, Any]] = {}
    asked = set(audit["id"])
    for entry in entries:
        identifier = entry.get("id")
        if not isinstance(identifier, str) or identifier not in asked or identifier in by_id:
            raise InputError(
                f"{FILE}: the id {identifier!r} was not asked for, or is there twice: {_SAVE_AGAIN}"
            )
        _check_entry(entry, len(class_names))
        by_id[identifier] = entry
    n_missing = len(asked) - len(by_id)
    if n_missing:
        raise InputError(
            f"{FILE} answers {len(by_id)} of {len(asked)} images, and the interval holds only "
            "where all are answered: open the page again, where the other "
            f"{n_missing} follow, and save it then"
        )
    answers = [by_id[identifier]["answer"] for identifier in audit["id"]]
    classes = [by_id[identifier]["class"] for identifier in audit["id"]]
    answered = audit.assign(answer=pd.array(answers, dtype="str"))
    answered["class"] = pd.array(classes, dtype="int64")
    return answered


def _check_is_of(content: Mapping[str, Any], audit: pd.DataFrame) -> None:
    """Check that answers are those to the present images."""
    found = content.get("fingerprints")
    if not isinstance(found, Mapping):
        found = {}
    kinds = ((POOL, "pool"), (TEACHER, "teacher"), (DRAW, "draw of images"))
    for key, name in kinds:
        if found.get(key) != audit.attrs[key]:
            raise InputError(
                f"{FILE} answers the images of another {name}: answer those of "
                "08_reporting/pool_audit.html in the data folder, which was written again, or "
                "restore what it was written from"
            )


def _check_entry(entry: Mapping[str, Any], n_classes: int) -> None:
    answer = entry.get("answer")
    if answer not in ANSWERS:
        listed = ", ".join(ANSWERS)
        raise InputError(
            f"{FILE}: the answer {answer!r} for {entry['id']!r} is none of {listed}: {_SAVE_AGAIN}"
        )
    number = entry.get("class")
    # As `true` in JSON, which Python takes for 1
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if not is_number or number not in range(n_classes):
        raise InputError(
            f"{FILE}: the class {number!r} of {entry['id']!r} is outside 0..{n_classes - 1}: "
            f"{_SAVE_AGAIN}"
        )
