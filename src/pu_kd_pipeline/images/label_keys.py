"""Labels of a source, and which of them the keys of `label_map` and `exclude_labels` name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import listed, match_names

_MAX_COMPARED = 2_000  # labels that a misspelled key is compared with
_MAX_COMPARED_LENGTH = 200  # characters


@dataclass(frozen=True)
class SourceLabel:
    """What some images of a source are labeled with.

    Attributes:
        number: class number of the source, or None.
        name: class name, or None.
        file: which file it is from: each may number its classes in its own way.
    """

    number: int | None
    name: str | None
    file: int = 0

    def __str__(self) -> str:
        # A name says more than a number.
        if self.name is not None:
            return self.name
        return str(self.number)


def match_keys(
    labels: Sequence[SourceLabel], keys: Sequence[str], parameter: str, where: str
) -> list[list[str]]:
    """Return the keys of a parameter that each label of a source stands under: none, one or two.

    A key is a number or a name of the source: exactly, or the one name with its plain spelling.

    Raises:
        InputError: a key is no label of the source, or may be one or another.
    """
    names = [label.name for label in labels if label.name is not None]
    numbers = {str(label.number) for label in labels if label.number is not None}
    matches = match_names(keys, names)
    for key in sorted(matches.unclear):
        if key in numbers:
            continue
        raise InputError(
            f"{where}: the key {key!r} of {parameter} may mean more than one of "
            f"{listed(matches.unclear[key])}: write each label exactly as the source has it"
        )
    absent = [key for key in keys if key not in numbers and key not in matches.known]
    if absent:
        known = [*names, *sorted(numbers)]
        raise InputError(_absent_keys_message(absent, known, parameter, where))

    key_of_name = {name: key for key, name in matches.known.items()}
    known_keys = set(keys)
    keys_per_label = []
    for label in labels:
        found = []
        number_key = None
        if label.number is not None:
            number_key = str(label.number)
        if number_key in known_keys:
            found.append(number_key)
        if label.name in key_of_name:
            found.append(key_of_name[label.name])
        # Under both, a key such as "1" could be meant as either.
        is_name_of_another = number_key in matches.known and label.name != number_key
        if number_key in known_keys and is_name_of_another and label.name is not None:
            raise InputError(
                f"{where}: the key {number_key!r} of {parameter} is the number of {label.name!r} "
                f"and the name of other images: remove the column of numbers or of names"
            )
        distinct = list(dict.fromkeys(found))
        keys_per_label.append(distinct)
    return keys_per_label


def _absent_keys_message(
    absent: Sequence[str], known: Sequence[str], parameter: str, where: str
) -> str:
    distinct = list(dict.fromkeys(known))
    message = f"{where}: no image has the labels {listed(absent)} of {parameter}"
    suggestions = _suggestions(absent, distinct)
    if suggestions:
        message += f" (did you mean {listed(suggestions)}?)"
    return f"{message}; found: {listed(distinct)}. Correct or remove them"


def _suggestions(absent: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the nearest label for each key that has one, as text."""
    # Names of any number and length come from files: comparing all of them would take minutes.
    candidates = [name[:_MAX_COMPARED_LENGTH] for name in known[:_MAX_COMPARED]]
    suggestions = []
    for key in absent:
        near = get_close_matches(key[:_MAX_COMPARED_LENGTH], candidates, n=1)
        if near:
            suggestions.append(f"{near[0]!r} for {key!r}")
    return suggestions
