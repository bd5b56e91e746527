"""The metrics of a run as plain rows of text: for the terminal, the MLflow note and the HTML page.

Metrics are shares in [0, 1]; they become percent here and in plots, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.pu_training import AUDIT
from pu_kd_pipeline.reporting.gains import gain_text, gain_title, whole_pool_gain_text
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

# --- models ---

MODEL_TITLES = {
    "teacher": "teacher",
    "student": "student",
    "random_student": "student of random images",
    "whole_pool_student": "student of the whole pool",
    "student_without_critic": "student without the critic",
}
"""Column titles in the order of the table. Other models follow, titled by their key."""

_PERCENT_SIGN = " %"


@dataclass(frozen=True)
class _ModelQuantity:
    """One row of the table of models."""

    key: str
    """Key below the model's name in the metrics."""
    title: str
    to_text: Callable[[float], str]
    is_relative_to_teacher: bool = False
    """Whether it compares a model with the teacher, so that the teacher has no value."""
    bounds: tuple[str, str] | None = None
    """Keys of the bounds of its interval."""
    spread_key: str | None = None
    """Key of how much the measurement varies, in the same unit."""


def model_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and one row per quantity that any model has; "–" where a model lacks it.

    Args:
        metrics: every top-level entry with an `accuracy` is a model.
    """
    names = _model_names(metrics)
    header = [""]
    for name in names:
        key_in_words = name.replace("_", " ")
        header.append(MODEL_TITLES.get(name, key_in_words))

    rows = [header]
    for quantity in MODEL_QUANTITIES:
        cells = [_cell(quantity, name, metrics[name]) for name in names]
        if any(cell != UNKNOWN for cell in cells):
            rows.append([quantity.title, *cells])
    return rows


def _model_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the keys of the models: known ones in the order of their titles, then the others."""
    names = []
    for name, facts in metrics.items():
        if isinstance(facts, Mapping) and "accuracy" in facts:
            names.append(name)

    known = [name for name in MODEL_TITLES if name in names]
    unknown = [name for name in names if name not in MODEL_TITLES]
    return known + unknown


def _cell(quantity: _ModelQuantity, name: str, facts: Mapping[str, Any]) -> str:
    value = facts.get(quantity.key)
    if quantity.is_relative_to_teacher and name == "teacher":
        value = None
    if value is None:
        return UNKNOWN
    text = quantity.to_text(value)
    spread = None
    if quantity.spread_key is not None:
        spread = facts.get(quantity.spread_key)
    if spread is not None:
        return f"{text} (spread {quantity.to_text(spread)})"
    if quantity.bounds is None:
        return text
    lower, upper = (quantity.to_text(facts[key]) for key in quantity.bounds)
    # The unit stands behind the value.
    return f"{text} ({lower.removesuffix(_PERCENT_SIGN)} to {upper.removesuffix(_PERCENT_SIGN)})"


def _in_units(*units: str) -> Callable[[float], str]:
    """Return a function that writes a number in the largest unit in which it is at least 1.

    Args:
        units: names by size, each 1,000 times the one before; "" for a plain number.
    """

    def to_text(value: float) -> str:
        step = 0
        while abs(value) >= 1000 and step < len(units) - 1:
            value = value / 1000
            step += 1
        # Three significant digits would turn 1,234 of the largest unit into 1.23e+03.
        number = f"{value:,.0f}"
        if abs(value) < 1000:
            number = f"{value:,.3g}"
        return f"{number} {units[step]}".rstrip()

    return to_text


# A row appears where any model has the key, so one that evaluation stops writing just disappears.
MODEL_QUANTITIES = (
    _ModelQuantity("accuracy", "accuracy", percent),
    _ModelQuantity(
        "labeled_accuracy",
        "accuracy on the labeled images",
        percent,
        bounds=("labeled_accuracy_lower", "labeled_accuracy_upper"),
    ),
    _ModelQuantity("agreement", "agreement with the teacher", percent, is_relative_to_teacher=True),
    _ModelQuantity(
        "yardstick_agreement",
        "the same, on the yardstick",
        percent,
        bounds=("yardstick_agreement_lower", "yardstick_agreement_upper"),
    ),
    _ModelQuantity("yardstick_kl", "divergence from the teacher, on the yardstick", _in_units("")),
    _ModelQuantity("parameters", "parameters", _in_units("", "k", "M", "G")),
    _ModelQuantity("flops", "FLOPs per image", _in_units("", "k", "M", "G", "T")),
    _ModelQuantity(
        "latency_ms", "latency, one image", _in_units("ms"), spread_key="latency_spread_ms"
    ),
    _ModelQuantity("size_bytes", "size of the weights", _in_units("B", "kB", "MB", "GB")),
)


# --- selection ---


def selection_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return one row of name and value per known fact about the selected and measured images."""
    selection = metrics.get("selection", {})
    rows = []
    for title, to_text in _SELECTION_QUANTITIES.items():
        text = to_text(selection)
        if text is not None:
            rows.append([title, text])
    yardstick = metrics.get("yardstick")
    if yardstick:
        rows.append(["yardstick", _yardstick(yardstick)])
    title_of_gain = gain_title(metrics)
    gain = gain_text(metrics)
    if title_of_gain is not None and gain is not None:
        rows.append([title_of_gain, gain])
    over_whole_pool = whole_pool_gain_text(metrics)
    if over_whole_pool is not None:
        rows.append(["gain over the whole pool", over_whole_pool])
    return rows


def _selected(selection: Mapping[str, Any]) -> str | None:
    if "n_selected" not in selection:
        return None
    text = f"{selection['n_selected']:,}"
    if selection.get("n_pool") is not None:
        text += f" of {selection['n_pool']:,}"

    names = [str(selection[key]) for key in ("rule", "criterion") if selection.get(key)]
    how = " ".join(names)
    # Metrics are read from a file: a rule in it may come from a newer version.
    record = RULES.get(str(selection.get("rule")))
    if record is not None and record.note:
        how += f", {record.note}"
    n_preferred = selection.get("n_preferred")
    if n_preferred is not None:
        how += f", {n_preferred:,} of them more often than evenly"
    if how:
        text += f" ({how})"
    return text


def _quality(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that writes precision or recall, and of which images it is."""

    def text_of(selection: Mapping[str, Any]) -> str | None:
        if selection.get(key) is None:
            return None
        text = percent(selection[key])
        if selection.get("n_preferred") is not None:
            text += " (of the images that are drawn more often)"
        return text

    return text_of


def _yardstick(facts: Mapping[str, Any]) -> str:
    """Return how many images of each part students are measured on, and the fingerprint."""
    counts = [f"{facts[f'n_{part}']:,} {part}" for part in ("uniform", "related", "labeled")]
    return f"{', '.join(counts)} images ({facts['fingerprint']})"


def _left_out(prefix: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that writes how many images of each store were left out for a reason."""

    def text_of(selection: Mapping[str, Any]) -> str | None:
        texts = []
        # The store of test images itself is never selected from.
        for store in ("pool", "labeled"):
            count = selection.get(f"{prefix}_{store}")
            if count:
                texts.append(f"{count:,} of the {store} images")
        return ", ".join(texts) or None

    return text_of


def _class_prior(selection: Mapping[str, Any]) -> str | None:
    prior = selection.get("class_prior")
    if prior is None:
        return None
    text = f"{prior:.3f}"

    lower = selection.get("class_prior_lower")
    upper = selection.get("class_prior_upper")
    # A given prior has bounds too, both equal to it.
    method = selection.get("class_prior_method")
    if method == "given":
        text += " (given)"
    elif method == AUDIT:
        text += f" (by audit, {lower:.3f} to {upper:.3f})"
    elif lower is not None and upper is not None:
        text += f" ({lower:.3f} to {upper:.3f})"

    truth = selection.get("true_class_prior")
    if truth is not None:
        text += f", truly {truth:.3f}"
    return text


def _output_reading(selection: Mapping[str, Any]) -> str | None:
    """Return what the teacher's outputs read, and how both readings compare."""
    readings = selection.get("class_prior_readings")
    if not readings:
        return None
    text = f"{readings['outputs']:.3f} by DEDPUL, {readings['outputs_bbe']:.3f} by BBE"
    text += f" ({readings['ratio']:.1f} times the trained estimate)"
    flag = selection.get("class_prior_flag")
    if flag is not None:
        text += f": {flag.replace('_', ' ')}"
    return text


def _value(key: str, to_text: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that writes the value under this key, and None where it is missing."""

    def text_of(selection: Mapping[str, Any]) -> str | None:
        value = selection.get(key)
        if value is None:
            return None
        return to_text(value)

    return text_of


_SELECTION_QUANTITIES: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "pool images selected": _selected,
    "their number comes from": _value("size_source", str),
    "excluded, copies of test images": _left_out("n_excluded"),
    "excluded, the yardstick": _left_out("n_yardstick"),
    "class prior": _class_prior,
    "the teacher's outputs read": _output_reading,
    # Known only where the pool's truth is, and used for the report alone.
    "precision": _quality("precision"),
    "recall": _quality("recall"),
    "AUC": _value("auc", "{:.3f}".format),
}
