"""When two spellings are the same name: exactly, or but for case, separators and Unicode form."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pu_kd_pipeline.masking import visible_name

# One separator between two other characters. At the edge of a name it may be a sign: "-1", "A-".
_SEPARATOR = re.compile(r"(?<=[^\s_-])[ _-](?=[^\s_-])")
_MAX_LISTED = 10
_MAX_LISTED_LENGTH = 200  # characters of a name


@dataclass(frozen=True)
class Matches:
    """Which known name each of some names stands for.

    Attributes:
        known: name -> the known name that it is; names that are none are missing.
        unclear: name -> the names among which its spelling does not decide.
    """

    known: dict[str, str]
    unclear: dict[str, list[str]]


def plain_spelling(name: str) -> str:
    """Return a name without what differs between data sets: case, separators, Unicode form.

    `lower` and not `casefold`, and NFC and not NFKC: those also make "Maße" the same as "Masse",
    and "m²" the same as "m2", which are different words.
    """
    composed = unicodedata.normalize("NFC", name)
    lower = unicodedata.normalize("NFC", composed.lower())
    words = lower.split()
    spaced = " ".join(words)
    return _SEPARATOR.sub(" ", spaced)


def match_names(names: Iterable[str], known_names: Iterable[str]) -> Matches:
    """Find the known name that each name stands for.

    A name that is known exactly is that name. Any other is the known name with the same plain
    spelling, if only one known name has it and no other of the names does; else it is unclear.
    """
    known_by_spelling = _by_spelling(known_names)
    names_by_spelling = _by_spelling(names)

    known = {}
    unclear = {}
    for spelling, spelled in names_by_spelling.items():
        candidates = known_by_spelling.get(spelling, [])
        is_unique = len(candidates) == 1 and len(spelled) == 1
        for name in spelled:
            if name in candidates:
                known[name] = name
            elif is_unique:
                known[name] = candidates[0]
            elif candidates:
                rivals = {*candidates, *spelled} - {name}
                unclear[name] = sorted(rivals)
    return Matches(known, unclear)


def whole_number(name: str) -> int | None:
    """Return the number that a name is the usual way to write, such as "7" but not "07"."""
    if len(name) > 18 or not re.fullmatch(r"-?[0-9]+", name):  # beyond 64 bits
        return None
    number = int(name)
    if str(number) != name:
        return None
    return number


def listed(names: Iterable[object], n_most: int = _MAX_LISTED) -> str:
    """Return names for a message: the first ones as visible text, and how many more there are."""
    all_names = list(names)
    texts = []
    for name in all_names[:n_most]:
        text = visible_name(str(name))
        if len(text) > _MAX_LISTED_LENGTH:
            text = f"{text[:_MAX_LISTED_LENGTH]}…"
        texts.append(text)
    text = ", ".join(texts)
    n_more = len(all_names) - n_most
    if n_more > 0:
        text += f" and {n_more} more"
    return text


def _by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    # A dict and not a set, so that the order is the same in every process.
    for name in dict.fromkeys(names):
        found[plain_spelling(name)].append(name)
    return dict(found)
