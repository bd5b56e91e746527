"""Why each image is in the manifest, and how often it is shown, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.reporting.style import percent
from pu_kd_pipeline.storage.manifest import CLASS_WEIGHTS, MEAN_SAMPLE_WEIGHT

_OLDER = (
    "not known: the manifest has no column `reason`, it is of an earlier version. "
    "`kedro run --pipeline=subset_materialization` writes it again"
)


def reason_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return one row per reason with the number and the share of its images; none if not known."""
    selection = metrics.get("selection") or {}
    if "reasons" not in selection:
        return []
    reasons = selection["reasons"]
    if reasons is None:
        return [["reasons", _OLDER]]
    total = sum(reasons.values())
    rows = []
    for reason, count in reasons.items():
        share = percent(count / total)
        rows.append([f"reason: {reason}", f"{count:,} images ({share})"])
    return rows


def draw_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return how the images of the student's batches were drawn and weighted.

    None if its card does not state it.
    """
    selection = metrics.get("selection") or {}
    sampling = selection.get("sampling")
    if not isinstance(sampling, Mapping):
        return []
    rows = []
    labeled_shows = sampling.get("labeled_shows")
    if labeled_shows is not None:
        text = (
            f"{percent(sampling['labeled_share'])} of every batch "
            f"({percent(sampling['manifest_labeled_share'])} of the manifest), "
            f"each shown {_times(labeled_shows)}"
        )
        rows.append(["labeled images", text])
    if sampling.get("pool_shows") is not None:
        text = f"each shown {_times(sampling['pool_shows'])} on average"
        rows.append(["selected pool images", text])
    related = sampling.get("related")
    if isinstance(related, Mapping):
        rows.append(["related images", _related_text(related)])
    weights = selection.get(CLASS_WEIGHTS)
    if isinstance(weights, Mapping):
        rows.append(["class weights", _weights_text(weights)])
    return rows


def _weights_text(weights: Mapping[str, Any]) -> str:
    text = f"mode {weights['mode']}"
    mean = weights.get(MEAN_SAMPLE_WEIGHT)
    if mean is not None:
        text += f", mean weight of a weighted image {mean:.2f}"
    return text


def _related_text(related: Mapping[str, Any]) -> str:
    first = percent(related["first"], 0)
    last = percent(related["last"], 0)
    text = f"{first} of the pool images of every batch"
    if related["last"] < related["first"]:
        text = f"from {first} to {last} of the pool images of a batch"
    if related["end"] < 1:
        text += f", reached after {percent(related['end'], 0)} of the training"
    return (
        f"{text}; those of about {related['n_effective']:,.0f} are drawn often, "
        f"and shown {_times(related['shows'])} by these draws"
    )


def _times(count: float) -> str:
    if count < 10:
        return f"{count:.1f} times"
    return f"{count:,.0f} times"
