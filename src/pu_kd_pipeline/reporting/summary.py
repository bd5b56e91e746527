"""The metrics table that ends a run, as plain rows: the screen and the MLflow note print the same ones.

Accuracy and agreement are percent here, and only here and in plots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pu_kd_pipeline.learning.selection import RULES

MODELS = {
    "teacher": "teacher",
    "student": "student",
    "random_student": "student of random images",
    "student_without_critic": "student without the critic",
}


def model_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and one row per quantity that any of the models has; "-" where one of them lacks it."""
    names = [name for name in MODELS if name in metrics]
    rows = [["", *(MODELS[name] for name in names)]]
    for key, (title, in_words) in _MODEL_QUANTITIES.items():
        values = [
            metrics[name].get(key) if (name, key) != ("teacher", "agreement") else None
            for name in names
        ]
        if any(value is not None for value in values):
            rows.append([title, *("-" if value is None else in_words(value) for value in values)])
    return rows


def selection_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return one row of name and value per known fact about the selected images."""
    selection = metrics.get("selection", {})
    return [
        [title, text]
        for title, in_words in _SELECTION_QUANTITIES.items()
        if (text := in_words(selection)) is not None
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _in_units(*units: str) -> Callable[[float], str]:
    """Return a function that writes a number with the largest of `units` (each 1,000 of the one before) that fits."""

    def in_words(value: float) -> str:
        step = 0
        while abs(value) >= 1000 and step < len(units) - 1:
            value, step = value / 1000, step + 1
        return (
            f"{value:,.3g} {units[step]}".rstrip()
            if abs(value) < 1000
            else f"{value:,.0f} {units[step]}".rstrip()
        )

    return in_words


_MODEL_QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", _percent),
    "agreement": ("agreement with the teacher", _percent),
    "parameters": ("parameters", _in_units("", "k", "M", "G")),
    "flops": ("FLOPs per image", _in_units("", "k", "M", "G", "T")),
    "latency_ms": ("latency, one image", _in_units("ms")),
    "size_bytes": ("size of the weights", _in_units("B", "kB", "MB", "GB")),
}


def _selected(selection: Mapping[str, Any]) -> str | None:
    if "n_selected" not in selection:
        return None
    of = f" of {selection['n_pool']:,}" if selection.get("n_pool") is not None else ""
    rule = " ".join(str(selection[key]) for key in ("rule", "criterion") if selection.get(key))
    record = RULES.get(str(selection.get("rule")))
    if record is not None and record.note:
        rule += f", {record.note}"
    return f"{selection['n_selected']:,}{of}" + (f" ({rule})" if rule else "")


def _excluded(selection: Mapping[str, Any]) -> str | None:
    counts = [(selection.get(f"n_excluded_{store}"), store) for store in ("pool", "labeled")]
    return ", ".join(f"{count:,} of the {store} images" for count, store in counts if count) or None


def _class_prior(selection: Mapping[str, Any]) -> str | None:
    if selection.get("class_prior") is None:
        return None
    bounds = [selection.get(key) for key in ("class_prior_lower", "class_prior_upper")]
    interval = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if None not in bounds else ""
    if selection.get("class_prior_method") == "given":
        interval = " (given)"
    truth = selection.get("true_class_prior")
    return f"{selection['class_prior']:.3f}{interval}" + (
        f", truly {truth:.3f}" if truth is not None else ""
    )


def _value(key: str, in_words: Callable[[float], str]) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda selection: in_words(selection[key]) if selection.get(key) is not None else None


_SELECTION_QUANTITIES: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "pool images selected": _selected,
    "excluded, copies of test images": _excluded,
    "class prior": _class_prior,
    "precision": _value("precision", _percent),
    "recall": _value("recall", _percent),
    "AUC": _value("auc", "{:.3f}".format),
    "selection gain": _value(
        "gain", lambda gain: f"{100 * gain:+.1f} points of accuracy over random images"
    ),
}
