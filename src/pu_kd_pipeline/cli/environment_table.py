"""Prints what was found for a new environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pu_kd_pipeline.cli.environment_facts import PARTS, PartFacts, TeacherFacts
from pu_kd_pipeline.masking import visible, visible_name
from pu_kd_pipeline.params.teacher import InputSpec

if TYPE_CHECKING:
    from rich.table import Table

    from pu_kd_pipeline.models.model import Model

_MAX_CLASSES = 40  # rows of a table; of more classes, only the extremes are shown
_MAX_NAMED = 8
_FEW_IMAGES = 5  # labeled images of a class, with which its estimates mean little
_MUCH_BETTER_THAN_CHANCE = 1.5


def print_facts(
    model: Model,
    parameters: Mapping[str, int],
    parts: Mapping[str, PartFacts],
    known: TeacherFacts | None,
    notes: Sequence[str],
) -> None:
    """Print the tables, and a line for all that is missing or was decided.

    Args:
        model: the teacher.
        parameters: number of parameters of teacher and student, with their names.
        parts: part -> what its images are like.
        known: accuracy of the teacher on labeled images.
        notes: further lines.
    """
    from rich import box
    from rich.console import Console

    console = Console()
    console.print(_networks(model, parameters, known, box.SIMPLE_HEAD))
    console.print(_images(model, parts, box.SIMPLE_HEAD))
    lines = [*notes, *missing_lines(model, parts, known)]
    for line in lines:
        # Names of classes and files are no markup, and may hold control characters.
        console.print(f"- {visible(line)}", markup=False, highlight=False)


def _networks(
    model: Model, parameters: Mapping[str, int], known: TeacherFacts | None, box: object
) -> Table:
    from rich.table import Table

    table = Table("teacher", "", box=box)  # type: ignore[arg-type]
    card = model.card
    table.add_row("architecture", _plain(card.architecture))
    table.add_row("classes", _plain(f"{len(card.classes)}: {_listed(card.classes)}"))
    for name, n in parameters.items():
        table.add_row(_plain(f"parameters ({name})"), _in_units(n))
    table.add_row("input", _plain(_input_text(card.input)))
    table.add_row("accuracy on labeled images", accuracy_text(known))
    return table


def _input_text(spec: InputSpec) -> str:
    colors = "RGB"
    if spec.channels == 1:
        colors = "gray"
    stated = spec.model_dump(mode="json", exclude={"size_px", "channels"}, exclude_defaults=True)
    text = f"{spec.size_px} x {spec.size_px}, {colors}"
    for key, value in stated.items():
        text += f", {key} {value}"
    return text


def accuracy_text(known: TeacherFacts | None) -> str:
    """Return the accuracy with its counts."""
    if known is None:
        return "unknown: there are no labels"
    share = known.n_correct / known.n_images
    return f"{100 * share:.1f} % ({known.n_correct} of {known.n_images})"


def _images(model: Model, parts: Mapping[str, PartFacts], box: object) -> Table:
    from rich.table import Table

    table = Table("images", box=box)  # type: ignore[arg-type]
    for part in parts:
        table.add_column(part, justify="right")
    facts = list(parts.values())
    table.add_row("in the sources", *[f"{each.n_listed:,}" for each in facts])
    table.add_row("used", *[f"{each.n_images:,}" for each in facts])
    for number, name in enumerate(model.card.classes[:_MAX_CLASSES]):
        counts = [_count(each, number) for each in facts]
        table.add_row(_plain(f"  {visible_name(name)}"), *counts)
    if len(model.card.classes) > _MAX_CLASSES:
        table.add_row(f"  {len(model.card.classes) - _MAX_CLASSES} more classes")
    table.add_row("  no class, or unknown", *[f"{each.n_other:,}" for each in facts])
    table.add_row("width x height", *[_sizes(each) for each in facts])
    table.add_row("format", *[_formats(each) for each in facts])
    unusable = [f"{each.unusable.total()} of {each.n_sampled}" for each in facts]
    table.add_row("unusable, of a sample", *unusable)
    return table


def _count(facts: PartFacts, number: int) -> str:
    if not facts.n_per_class:
        return "?"
    return f"{facts.n_per_class[number]:,}"


def _sizes(facts: PartFacts) -> str:
    if not facts.sizes:
        return "-"
    smallest = min(facts.sizes, key=lambda size: size[0] * size[1])
    largest = max(facts.sizes, key=lambda size: size[0] * size[1])
    if smallest == largest:
        return f"{largest[0]}x{largest[1]}"
    return f"{smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"


def _formats(facts: PartFacts) -> str:
    return ", ".join(name for name, _ in facts.formats.most_common()) or "-"


def missing_lines(
    model: Model, parts: Mapping[str, PartFacts], known: TeacherFacts | None
) -> list[str]:
    """Return a line for everything that is missing or unusual."""
    lines = []
    classes = model.card.classes
    for part in PARTS:
        facts = parts[part]
        if part != "pool":
            absent = [name for number, name in enumerate(classes) if not facts.n_per_class[number]]
            if absent:
                lines.append(
                    f"missing: no {part} image of {len(absent)} classes: {_listed(absent)}"
                )
        for reason, n in (facts.faults + facts.unusable).most_common():
            lines.append(f"{part}: {n:,} images cannot be used: {reason}")
        if facts.passed_over:
            lines.append(f"{part}: files that are no images: {_counted(facts.passed_over)}")
    few = [
        name
        for number, name in enumerate(classes)
        if 0 < parts["labeled"].n_per_class[number] < _FEW_IMAGES
    ]
    if few:
        lines.append(f"few: less than {_FEW_IMAGES} labeled images of {_listed(few)}")
    lines += _accuracy_lines(known, len(classes))
    return lines


def _accuracy_lines(known: TeacherFacts | None, n_classes: int) -> list[str]:
    if known is None:
        return []
    share = known.n_correct / known.n_images
    if share * n_classes > _MUCH_BETTER_THAN_CHANCE:
        return []
    return [
        f"WARNING: the teacher classifies {100 * share:.1f} % of the labeled images as they are "
        f"labeled, and {100 / n_classes:.1f} % is chance: check --classes (the order of the "
        "network's outputs), --mean, --std and --architecture"
    ]


def _counted(counts: Counter[str]) -> str:
    named = [f"{reason} ({n:,})" for reason, n in counts.most_common(_MAX_NAMED)]
    return _listed(named)


def _listed(names: Sequence[str]) -> str:
    shown = [visible_name(name) for name in names[:_MAX_NAMED]]
    text = ", ".join(shown)
    if len(names) > _MAX_NAMED:
        text += f" and {len(names) - _MAX_NAMED} more"
    return text


def _plain(text: str) -> str:
    """Return a text in which Rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def _in_units(n: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)
