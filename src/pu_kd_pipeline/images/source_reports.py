"""What became of each source of a store: what was passed over, and the classes of its labels.

It is kept in `sources.json` next to the shards, for the ingestion report, with a checksum.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_joining import Rule
from pu_kd_pipeline.images.label_names import listed
from pu_kd_pipeline.images.shard_files import RUN_AGAIN
from pu_kd_pipeline.images.sources.base import PASSED_OVER
from pu_kd_pipeline.images.store_file import SOURCES_FILE
from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from pu_kd_pipeline.storage.folders import Folder, read_text, shown, write_text

_MAX_REASONS = 50
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
    passed_over = _most_common(listing.attrs.get(PASSED_OVER, {}))
    n_more_labels = max(0, len(counts) - _MAX_LABELS)
    return SourceReport(source, len(listing), len(selected), passed_over, labels, n_more_labels)


def _most_common(passed_over: Mapping[str, int]) -> dict[str, int]:
    """Return the most common reasons; names such as `scan.000017` have an extension each."""
    # Sorted, because the order of the files in a folder is that of the file system.
    counts = Counter(dict(sorted(passed_over.items())))
    kept = dict(counts.most_common(_MAX_REASONS))
    n_others = counts.total() - sum(kept.values())
    if n_others:
        kept["other extensions"] = n_others
    return kept


def log_report(report: SourceReport, where: str) -> None:
    """Log what was passed over, and how labels were joined; equal names are only counted.

    Warn where labels are read and none is a class: the source then has no relevant image.
    """
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
    if not unjoined:
        return
    if all(entry["label"] is None for entry in report.labels):
        logger.warning(
            "%s: labels are read, and no image has one, so that it is unknown which are relevant: "
            "correct `path` or the keys that say where labels are, such as `label_column` and "
            "`class_pattern`; or set labels to 'ignore'",
            where,
        )
    elif len(unjoined) == len(report.labels):
        which = f"{len(unjoined):,} most common labels" if report.n_more_labels else "labels"
        logger.warning(
            "%s: none of its %s is a class of the teacher, so that no such image counts as "
            "relevant: %s. If some are, give their classes in label_map",
            where,
            which,
            listed(unjoined),
        )
    else:
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


def write_reports(folder: Folder, reports: Sequence[SourceReport]) -> None:
    """Write the reports of a store's sources into its folder."""
    content = {"sources": [asdict(report) for report in reports]}
    write_text(folder, SOURCES_FILE, to_checked_json(content))


def read_reports(folder: Folder, n_images: int) -> list[dict[str, Any]]:
    """Return the reports of a store's sources.

    Args:
        folder: of the store.
        n_images: images that the store holds or has quarantined.

    Raises:
        InputError: the file is missing or damaged, or is not the one of this store.
    """
    file = shown(folder, SOURCES_FILE)
    try:
        content = from_checked_json(read_text(folder, SOURCES_FILE))
        reports: list[dict[str, Any]] = content["sources"]
        n_selected = sum(report["n_selected"] for report in reports)
    except FileNotFoundError as exc:
        raise InputError(f"there is no {file}: {RUN_AGAIN}") from exc
    except InputError:  # of an object store, which is no damage
        raise
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as exc:
        raise InputError(f"{file} is damaged ({exc!r}): delete it and {RUN_AGAIN}") from exc
    if n_selected != n_images:
        raise InputError(
            f"{file} is about {n_selected:,} images, its store about {n_images:,}: "
            f"delete it and {RUN_AGAIN}"
        )
    return reports
