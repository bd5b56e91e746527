"""Prints what was found for a new environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.cli.environment_facts import PARTS, PartFacts
from pu_kd_pipeline.features.teacher_advice import (
    findings_text,
    interval_text,
    percent_text,
    refusal_text,
    stops_run,
)
from pu_kd_pipeline.masking import visible, visible_name
from pu_kd_pipeline.params.teacher import InputSpec

if TYPE_CHECKING:
    from rich.table import Table

    from pu_kd_pipeline.models.model import Model

_MAX_CLASSES = 40  # rows of a table
_MAX_NAMED = 8
_FEW_IMAGES = 5  # labeled images of a class, with which its estimates mean little
_UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}


def print_facts(
    model: Model,
    parameters: Mapping[str, int],
    parts: Mapping[str, PartFacts],
    check: Mapping[str, Any],
    lines: Sequence[str],
) -> None:
    """Print the tables, and lines below them.

    Args:
        model: the teacher.
        parameters: number of parameters of teacher and student, with their names.
        parts: part -> what its images are like.
        check: of the teacher on labeled images, see `teacher_check.describe_check`.
        lines: what is missing or was decided.
    """
    from rich.console import Console

    console = Console()
    console.print(_networks(model, parameters, check))
    console.print(_images(model, parts))
    for line in lines:
        # Names of classes and files are no markup, and may hold control characters.
        console.print(f"- {visible(line)}", markup=False, highlight=False)


# --- tables ---------------------------------------------------------------------------------------


def _networks(model: Model, parameters: Mapping[str, int], check: Mapping[str, Any]) -> Table:
    card = model.card
    classes = f"{len(card.classes)}: {_listed(card.classes)}"
    table = _table("teacher", "")
    table.add_row("architecture", _plain(card.architecture))
    table.add_row("classes", _plain(classes))
    for name, n in parameters.items():
        table.add_row(_plain(f"parameters ({name})"), _in_units(n))
    table.add_row("input", _plain(_input_text(card.input)))
    if "untested" in check:
        table.add_row("accuracy on labeled images", "unknown")
        return table
    accuracy = percent_text(check["accuracy"])
    interval = interval_text(check)
    counted = f"{accuracy} of {check['n_images']} (95 % interval: {interval})"
    table.add_row("accuracy on labeled images", counted)
    table.add_row("accuracy by chance", percent_text(check["chance"]))
    return table


def _input_text(spec: InputSpec) -> str:
    """Return the size, the colors, and the keys that are not at their default."""
    colors = "RGB"
    if spec.channels == 1:
        colors = "gray"
    parts = [f"{spec.size_px} x {spec.size_px}", colors]
    stated = spec.model_dump(mode="json", exclude={"size_px", "channels"}, exclude_defaults=True)
    for key, value in stated.items():
        parts.append(f"{key} {value}")
    return ", ".join(parts)


def _images(model: Model, parts: Mapping[str, PartFacts]) -> Table:
    table = _table("images")
    for part in parts:
        table.add_column(part, justify="right")

    facts = list(parts.values())
    n_listed = [f"{each.n_listed:,}" for each in facts]
    n_images = [f"{each.n_images:,}" for each in facts]
    n_other = [f"{each.n_other:,}" for each in facts]
    table.add_row("in the sources", *n_listed)
    table.add_row("used", *n_images)
    classes = model.card.classes
    for number, name in enumerate(classes[:_MAX_CLASSES]):
        counts = [_count(each, number) for each in facts]
        table.add_row(_plain(f"  {visible_name(name)}"), *counts)
    n_more = len(classes) - _MAX_CLASSES
    if n_more > 0:
        table.add_row(f"  {n_more} more classes")
    table.add_row("  no class, or unknown", *n_other)
    table.add_row("width x height", *map(_sizes, facts))
    table.add_row("format", *map(_formats, facts))
    table.add_row("unusable, of a sample", *map(_unusable, facts))
    return table


def _table(*headers: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*headers, box=box.SIMPLE_HEAD)


def _count(facts: PartFacts, number: int) -> str:
    if not facts.n_per_class:
        return "?"
    return f"{facts.n_per_class[number]:,}"


def _sizes(facts: PartFacts) -> str:
    if not facts.sizes:
        return "-"
    smallest = min(facts.sizes, key=_area)
    largest = max(facts.sizes, key=_area)
    if smallest == largest:
        return _size_text(largest)
    return f"{_size_text(smallest)} to {_size_text(largest)}"


def _area(size: tuple[int, int]) -> int:
    width, height = size
    return width * height


def _size_text(size: tuple[int, int]) -> str:
    width, height = size
    return f"{width}x{height}"


def _formats(facts: PartFacts) -> str:
    if not facts.formats:
        return "-"
    names = [name for name, _ in facts.formats.most_common()]
    return ", ".join(names)


def _unusable(facts: PartFacts) -> str:
    n_unusable = facts.unusable.total()
    return f"{n_unusable} of {facts.n_sampled}"


# --- lines ----------------------------------------------------------------------------------------


def teacher_lines(check: Mapping[str, Any], mode: str) -> list[str]:
    """Return what a run will log about the teacher, unless all is well.

    Args:
        check: see `teacher_check.describe_check`.
        mode: of the block `teacher_check`, which a run will have.
    """
    if "untested" in check:
        return [f"the teacher was not tested on labeled images: {check['untested']}"]
    if stops_run(check, mode):
        return [f"WARNING: a run will stop. {refusal_text(check)}"]
    if check["advice"]:
        return [f"WARNING: {findings_text(check)}"]
    return []


def missing_lines(model: Model, parts: Mapping[str, PartFacts]) -> list[str]:
    """Return a line for everything about the images that is missing or unusual."""
    classes = model.card.classes
    lines = []
    for part in PARTS:
        facts = parts[part]
        # The classes of a pool are not known.
        if part != "pool":
            lines += _absent_lines(part, facts, classes)
        faults = facts.faults + facts.unusable
        for reason, n in faults.most_common():
            lines.append(f"{part}: {n:,} images cannot be used: {reason}")
        if facts.passed_over:
            lines.append(f"{part}: files that are no images: {_counted(facts.passed_over)}")
    lines += _few_lines(parts["labeled"], classes)
    return lines


def _absent_lines(part: str, facts: PartFacts, classes: Sequence[str]) -> list[str]:
    absent = []
    for number, name in enumerate(classes):
        if facts.n_per_class[number] == 0:
            absent.append(name)
    if not absent:
        return []
    return [f"missing: no {part} image of {len(absent)} classes: {_listed(absent)}"]


def _few_lines(labeled: PartFacts, classes: Sequence[str]) -> list[str]:
    few = []
    for number, name in enumerate(classes):
        if 0 < labeled.n_per_class[number] < _FEW_IMAGES:
            few.append(name)
    if not few:
        return []
    return [f"few: less than {_FEW_IMAGES} labeled images of {_listed(few)}"]


# --- texts ----------------------------------------------------------------------------------------


def _counted(counts: Counter[str]) -> str:
    named = [f"{reason} ({n:,})" for reason, n in counts.most_common()]
    return _listed(named)


def _listed(names: Sequence[str]) -> str:
    shown = [visible_name(name) for name in names[:_MAX_NAMED]]
    text = ", ".join(shown)
    n_more = len(names) - _MAX_NAMED
    if n_more > 0:
        text += f" and {n_more} more"
    return text


def _plain(text: str) -> str:
    """Return a text in which Rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def _in_units(n: int) -> str:
    for unit, size in _UNITS.items():
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)
