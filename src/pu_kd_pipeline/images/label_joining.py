"""Which class of the teacher each label of a source is.

The rules are in docs/decisions/0028-how-labels-are-joined.md. Whatever they leave open is refused:
a wrong class would not be seen in any later result.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_keys import SourceLabel, match_keys
from pu_kd_pipeline.images.label_names import listed, match_names, whole_number

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


class Rule(StrEnum):
    """How a label was joined to a class."""

    NAME = "name"
    SPELLING = "spelling"  # but for case, separators and Unicode form
    NUMBER = "number"  # the class is called so, or classes have numbers only
    POSITION = "position"  # of the class among the teacher's
    MAP = "label_map"
    ORDER = "sorted_names"
    NONE = "no class"


@dataclass(frozen=True)
class JoinedLabel:
    """The class of a label, None if it has none, and the rule that decided."""

    class_index: int | None = None
    rule: Rule = Rule.NONE


NO_CLASS = JoinedLabel()


def join_labels(
    labels: Sequence[SourceLabel],
    source: ImageSource,
    class_names: Sequence[str],
    where: str,
    other_names: Iterable[str | None] = (),
) -> list[JoinedLabel]:
    """Return the class of each label of a source.

    Args:
        labels: all labels of the source, each of them once.
        source: parameters of the source.
        class_names: names of the teacher's classes 0..K-1.
        where: name of the source, for messages.
        other_names: further names of the source, which are not joined.

    Raises:
        InputError: a label may be one class or another, or one or none; or `label_map` does not
            fit.
    """
    is_truth = source.labels == "truth"
    task = _Task(labels, class_names, is_truth, where, frozenset(other_names))
    if source.label_map is not None:
        return _by_label_map(task, source.label_map)
    if source.sorted_names:
        return _by_sorted_names(task)
    if task.has_numbered_classes:
        return _by_number(task)
    return _by_name(task)


@dataclass(frozen=True)
class _Task:
    """The labels to join, and the classes to join them to."""

    labels: Sequence[SourceLabel]
    class_names: Sequence[str]
    is_truth: bool
    where: str
    other_names: frozenset[str | None]

    @property
    def index_of_class(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.class_names)}

    @property
    def has_numbered_classes(self) -> bool:
        """Whether the teacher's classes have numbers and no names."""
        return all(whole_number(name) is not None for name in self.class_names)

    def template(self, joined: Sequence[JoinedLabel]) -> str:
        """Return a `label_map` to complete, with what is known already."""
        classes: dict[str, int | None] = {}
        for label, found in zip(self.labels, joined, strict=True):
            if label.number is not None or label.name is not None:
                classes.setdefault(str(label), found.class_index)
        entries = []
        for key, index in classes.items():
            quoted = json.dumps(key, ensure_ascii=False)
            value = "?" if index is None else str(index)
            entries.append(f"{quoted}: {value}")
        return f"label_map: {{{listed(entries)}}} (label: number of the class)"


# --- rules


def _by_name(task: _Task) -> list[JoinedLabel]:
    """Join to classes that have names: a name decides, and a number alone is a position."""
    index_of_class = task.index_of_class
    own_names = [label.name for label in task.labels if label.name is not None]
    other_names = sorted(name for name in task.other_names if name is not None)
    matches = match_names([*own_names, *other_names], task.class_names)

    joined = []
    for label in task.labels:
        class_name = matches.known.get(label.name or "")
        if class_name is None:
            joined.append(NO_CLASS)
            continue
        rule = Rule.SPELLING
        if class_name == label.name:
            rule = Rule.NAME
        joined.append(JoinedLabel(index_of_class[class_name], rule))

    unclear = [name for name in own_names if name in matches.unclear]
    if unclear:
        name = min(unclear)
        raise InputError(
            f"{task.where}: the label {name!r} is not spelled like a class of the teacher, and "
            f"without case and separators it cannot be distinguished from "
            f"{listed(matches.unclear[name])}: rename it, or set {task.template(joined)}"
        )
    _check_one_name_per_number(task, joined)
    _join_lone_numbers(task, joined)
    if task.is_truth:
        _check_unknown_names(task, joined)
    return joined


def _join_lone_numbers(task: _Task, joined: list[JoinedLabel]) -> None:
    """Join labels without a name in place: to the class called so, or to the one at its position.

    Raises:
        InputError: other labels of the source show that it counts classes in another way.
    """
    lone = []
    for row, label in enumerate(task.labels):
        if label.name is None and label.number is not None:
            lone.append(row)
    if not lone:
        return

    if any(_looks_like_a_number(name) for name in task.class_names):
        for row in lone:
            index = _class_called_like_number(task, task.labels[row].number)
            if index is not None:
                joined[row] = JoinedLabel(index, Rule.NUMBER)
        return

    contradiction = _first_contradiction(task, joined)
    if contradiction is not None:
        raise InputError(
            f"{task.where}: some images have numbers without names, and elsewhere in this source "
            f"the number {contradiction.number} is {contradiction.name!r}, which is not the "
            f"teacher's class {contradiction.number}: give every image a name"
        )
    n_classes = len(task.class_names)
    outside = []
    for row in lone:
        number = task.labels[row].number
        if number is not None and 0 <= number < n_classes:
            joined[row] = JoinedLabel(number, Rule.POSITION)
        else:
            outside.append(number)
    if outside and task.is_truth:
        raise InputError(
            f"{task.where}: its labels are numbers without names, and {listed(outside)} are no "
            f"positions among the teacher's {n_classes} classes ({listed(task.class_names)}), so "
            f"that the others may count other classes as well: set {task.template(joined)}"
        )


def _class_called_like_number(task: _Task, number: int | None) -> int | None:
    """Return the class with the name of a number, such as "1" or "1.0"; None if there is none.

    Sources have read "1.0" as a number, as pandas writes whole numbers next to missing ones.

    Raises:
        InputError: there are both.
    """
    found = [name for name in (f"{number}", f"{number}.0") if name in task.index_of_class]
    if len(found) > 1:
        raise InputError(
            f"{task.where}: its label {number} may be the teacher's class {found[0]!r} or "
            f"{found[1]!r}: give label_map (label: number of the class)"
        )
    return task.index_of_class[found[0]] if found else None


def _by_number(task: _Task) -> list[JoinedLabel]:
    """Join to classes that have only numbers: the label's number, or a name that is one."""
    index_of_class = task.index_of_class
    joined = []
    for label in task.labels:
        by_number = index_of_class.get(str(label.number))
        by_name = index_of_class.get(label.name or "")
        if label.number is None:
            by_number = by_name
        elif by_name is not None and by_name != by_number:
            raise InputError(
                f"{task.where}: its label {label.number} has the name {label.name!r}, which is "
                "another class of the teacher: remove the column that is wrong, or give label_map "
                "(label: number of the class)"
            )
        if by_number is None:
            joined.append(NO_CLASS)
        else:
            joined.append(JoinedLabel(by_number, Rule.NUMBER))

    _check_files_count_alike(task, joined)
    if task.is_truth:
        _check_other_spellings_of_numbers(task, joined)
    has_number = any(label.number is not None for label in task.labels)
    is_joined = any(found.class_index is not None for found in joined)
    names = sorted({label.name for label in task.labels if label.name is not None})
    if task.is_truth and names and not has_number and not is_joined:
        raise InputError(
            f"{task.where}: its labels are names ({listed(names)}) and the teacher's "
            f"{len(task.class_names)} classes have only numbers, so which images are relevant is "
            "unknown: give label_map, or the teacher's class names"
        )
    return joined


def _by_sorted_names(task: _Task) -> list[JoinedLabel]:
    """Number the names in sorted order, as torchvision's ImageFolder numbers its folders."""
    names = sorted({label.name for label in task.labels if label.name is not None})
    n_classes = len(task.class_names)
    if not task.has_numbered_classes:
        raise InputError(
            f"{task.where}: sorted_names is for a teacher whose classes have only numbers, and its "
            f"classes are {listed(task.class_names)}: remove sorted_names"
        )
    if len(names) != n_classes:
        raise InputError(
            f"{task.where}: sorted_names needs one name for each of the teacher's {n_classes} "
            f"classes, and there are {len(names)} ({listed(names)}): give the teacher's class "
            "names, or label_map"
        )
    joined = []
    for label in task.labels:
        if label.name is None:
            joined.append(NO_CLASS)
        else:
            joined.append(JoinedLabel(names.index(label.name), Rule.ORDER))
    return joined


def _by_label_map(task: _Task, label_map: Mapping[str, int]) -> list[JoinedLabel]:
    n_classes = len(task.class_names)
    outside = {}
    for key, index in label_map.items():
        if not 0 <= index < n_classes:
            outside[key] = index
    if outside:
        raise InputError(
            f"{task.where}: label_map leads to classes outside 0..{n_classes - 1} of the teacher: "
            f"{outside}"
        )

    joined = []
    keys_per_label = match_keys(task.labels, list(label_map), "label_map", task.where)
    for label, keys in zip(task.labels, keys_per_label, strict=True):
        indices = {label_map[key] for key in keys}
        if len(indices) > 1:
            raise InputError(
                f"{task.where}: label_map leads the number {label.number} and the name "
                f"{label.name!r} of the same images to different classes: correct one of them"
            )
        if indices:
            joined.append(JoinedLabel(indices.pop(), Rule.MAP))
        else:
            joined.append(NO_CLASS)
    return joined


# --- numbers and names that disagree


def _check_one_name_per_number(task: _Task, joined: Sequence[JoinedLabel]) -> None:
    """Refuse a class with two numbers, and a number of two classes: some row must be wrong."""
    names_of: dict[tuple[int, int], set[str]] = defaultdict(set)
    numbers_of: dict[tuple[int, str], set[int]] = defaultdict(set)
    for label, found in zip(task.labels, joined, strict=True):
        if label.number is None or label.name is None or found.class_index is None:
            continue
        # Files may number their classes in different ways.
        names_of[label.file, label.number].add(label.name)
        numbers_of[label.file, label.name].add(label.number)

    fix = "correct the rows that are wrong, remove one of the two columns, or give label_map"
    for (_, number), names in names_of.items():
        if len(names) > 1:
            raise InputError(
                f"{task.where}: numbers and names of its labels disagree: the number {number} is "
                f"{listed(sorted(names))}: {fix}"
            )
    for (_, name), numbers in numbers_of.items():
        if len(numbers) > 1:
            raise InputError(
                f"{task.where}: numbers and names of its labels disagree: {name!r} has the numbers "
                f"{listed(sorted(numbers))}: {fix}"
            )


def _check_files_count_alike(task: _Task, joined: Sequence[JoinedLabel]) -> None:
    """Refuse files that give a number different names: their numbers are not the same classes."""
    names_of: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for label, found in zip(task.labels, joined, strict=True):
        if label.number is not None and label.name is not None and found.class_index is not None:
            names_of[label.number][label.file].add(label.name)

    for number, names_by_file in names_of.items():
        seen: set[str] = set()
        for names in names_by_file.values():
            if seen and seen.isdisjoint(names):
                raise InputError(
                    f"{task.where}: the number {number} is {min(seen)!r} in one file and "
                    f"{min(names)!r} in another, and the teacher's classes have only numbers: list "
                    "the files as sources of their own, each with its label_map"
                )
            seen |= names


def _check_unknown_names(task: _Task, joined: Sequence[JoinedLabel]) -> None:
    """Refuse names of no class where their numbers suggest that they are classes after all.

    That is so where the source counts as the teacher does, as far as its names show, and the class
    of that number has no other name: "car" with the number of the class "automobile".
    """
    if _first_contradiction(task, joined) is not None:
        return  # the numbers are others than the teacher's, and mean nothing to it
    n_classes = len(task.class_names)
    found = {each.class_index for each in joined}
    for label, each in zip(task.labels, joined, strict=True):
        if label.name is None or each.class_index is not None:
            continue
        number = label.number
        # A name such as "3", "3.0" or "03" may be meant as a number.
        if number is None:
            number = _whole_value(label.name)
        if number is None or not 0 <= number < n_classes or number in found:
            continue
        raise InputError(
            f"{task.where}: its label {number} is {label.name!r}, the teacher's class {number} is "
            f"{task.class_names[number]!r}, and whether they are the same is unclear: set "
            f"{task.template(joined)}, without the labels that are no class; or set labels to "
            "'ignore'"
        )


def _check_other_spellings_of_numbers(task: _Task, joined: Sequence[JoinedLabel]) -> None:
    """Refuse names such as "03" and "3.0" where a class is called "3"."""
    for label, each in zip(task.labels, joined, strict=True):
        if label.number is not None or label.name is None or each.class_index is not None:
            continue
        number = _whole_value(label.name)
        if str(number) in task.index_of_class:
            raise InputError(
                f"{task.where}: its label {label.name!r} is not spelled like the teacher's class "
                f"{str(number)!r}, and whether they are the same is unclear: set "
                f"{task.template(joined)}, without the labels that are no class; or set labels to "
                "'ignore'"
            )


def _first_contradiction(task: _Task, joined: Sequence[JoinedLabel]) -> SourceLabel | None:
    """Return a label whose number is not the position of the class that its name is."""
    for label, found in zip(task.labels, joined, strict=True):
        if label.number is None or found.class_index is None:
            continue
        if label.number != found.class_index:
            return label
    return None


def _whole_value(name: str) -> int | None:
    """Return the whole number that a name is one way to write: 3 for "3", "3.0", "03", "3e0"."""
    number = whole_number(name)
    if number is None and _looks_like_a_number(name) and float(name).is_integer():
        number = int(float(name))
    return number


def _looks_like_a_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
