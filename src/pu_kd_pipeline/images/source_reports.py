"""What became of each source of a store: what was passed over, and the classes of its labels.

It is kept in `sources.json` next to the shards, for the ingestion report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_joining import Rule
from pu_kd_pipeline.images.label_names import listed
from pu_kd_pipeline.images.shard_files import RUN_AGAIN
from pu_kd_pipeline.storage.atomic import replacing_file

SOURCES_FILE = "sources.json"
PASSED_OVER = "passed_over"  # in the `attrs` of a listing: reason -> number of files
# A pool may have a caption per image instead of a label.
_MAX_LABELS = 2_000
_PHRASES = {
    Rule.NAME: "its name",
    Rule.SPELLING: "but for its spelling",
    Rule.NUMBER: "its number",
    Rule.POSITION: "its position",
    Rule.MAP: "label_map",
    Rule.ORDER: "sorted_names",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceReport:
    """One source of a store.

    Attributes:
        source: its name in the index of the store.
        n_listed: images that it has.
        n_selected: those that its parameters select, also if they cannot be used.
        passed_over: reason -> number of files that are no images of the source.
        labels: per label of the selected images `label`, `class`, `class_name`, `rule` (see
            `label_joining.Rule`) and `n_images`, most first; empty where labels are ignored.
        n_more_labels: further labels, of which none has more images.
    """

    source: str
    n_listed: int
    n_selected: int
    passed_over: dict[str, int]
    labels: list[dict[str, Any]]
    n_more_labels: int


def report_source(
    source: str, listing: pd.DataFrame, selected: pd.DataFrame, class_names: Sequence[str]
) -> SourceReport:
    """Return the report of a source.

    Args:
        source: its name.
        listing: all its images.
        selected: those that are selected, with the columns of `labels.with_teacher_labels`; a null
            `rule` means that their labels are not read.
        class_names: names of the teacher's classes.
    """
    read = selected[selected["rule"].notna()]
    groups = read.groupby(["source_label", "label", "rule"], dropna=False)
    counts = groups.size().reset_index(name="n_images")
    counts = counts.sort_values("n_images", ascending=False, kind="stable")
    labels = []
    for row in counts.head(_MAX_LABELS).to_dict("records"):
        label = None if pd.isna(row["source_label"]) else str(row["source_label"])
        index = None
        class_name = None
        if pd.notna(row["label"]):
            index = int(row["label"])
            class_name = class_names[index]
        labels.append(
            {
                "label": label,
                "class": index,
                "class_name": class_name,
                "rule": str(row["rule"]),
                "n_images": int(row["n_images"]),
            }
        )
    passed_over = dict(listing.attrs.get(PASSED_OVER, {}))
    n_more_labels = max(0, len(counts) - _MAX_LABELS)
    return SourceReport(source, len(listing), len(selected), passed_over, labels, n_more_labels)


def log_report(report: SourceReport, where: str) -> None:
    """Log what was passed over, and how labels were joined; equal names are only counted."""
    if report.passed_over:
        reasons = [f"{reason} ({n:,})" for reason, n in report.passed_over.items()]
        logger.info("%s: passed over: %s", where, listed(reasons))

    joined = _joined_texts(report.labels)
    if joined:
        logger.info("%s: %s", where, listed(joined))
    unjoined = []
    for entry in report.labels:
        if entry["class"] is None:
            label = "no label" if entry["label"] is None else repr(entry["label"])
            unjoined.append(f"{label} ({entry['n_images']:,})")
    if unjoined:
        logger.info("%s: no class of the teacher: %s", where, listed(unjoined))


def _joined_texts(labels: Sequence[dict[str, Any]]) -> list[str]:
    """Return a text on the labels that are class names, and one on each other label of a class."""
    n_equal = 0
    n_images = 0
    others = []
    for entry in labels:
        if entry["class"] is None:
            continue
        if entry["label"] == entry["class_name"]:
            n_equal += 1
            n_images += entry["n_images"]
            continue
        others.append(
            f"label {entry['label']!r} is read as class {entry['class_name']!r} "
            f"({_PHRASES[entry['rule']]}; {entry['n_images']:,} images)"
        )
    if n_equal:
        return [f"{n_equal} labels are class names ({n_images:,} images)", *others]
    return others


def write_reports(folder: Path, reports: Sequence[SourceReport]) -> None:
    """Write the reports of a store's sources into its folder."""
    content = [asdict(report) for report in reports]
    with replacing_file(folder / SOURCES_FILE) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of a store's sources; a store of an earlier version has none.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / SOURCES_FILE
    try:
        reports: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, OSError, RecursionError) as exc:
        raise InputError(f"{file} is damaged ({exc}): delete it and {RUN_AGAIN}") from exc
    return reports
