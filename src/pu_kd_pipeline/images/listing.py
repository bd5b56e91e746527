"""Which images a store should hold: the rows of its sources that the plan selects, with labels.

Nothing is decoded here; `images.ingestion` reads and writes what is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.labels import (
    check_all_classes_present,
    draw,
    in_share,
    is_in_label_ranks,
    with_teacher_labels,
)
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.shard_files import index_schema
from pu_kd_pipeline.images.source_reports import SourceReport, report_source
from pu_kd_pipeline.images.sources.base import Source, default_name
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.masking import visible_name, without_credentials
from pu_kd_pipeline.params.paths import is_url

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

# A stored image can be reused as long as these columns are what the plan asks for.
IDENTITY_COLUMNS = ["id", "version", "source", "label", "relevant"]


@dataclass(frozen=True)
class Reader:
    """A source with its listing, so that images can be read by their row in it.

    Attributes:
        source: the source.
        listing: all its images.
        report: what was selected of them.
        where: the source's key and name, for messages.
        n_before_draw: images of a source of which some are drawn or split by rank, without those
            outside of its `share`; 0 for a source that is used as a whole.
    """

    source: Source
    listing: pd.DataFrame
    report: SourceReport
    where: str
    n_before_draw: int


def list_images(plan: IngestionPlan) -> tuple[pd.DataFrame, list[Reader]]:
    """Return every image that the store must hold or account for, and the readers of the sources.

    The table has `id`, `source`, `label`, `relevant`, `version`, `fault`, `reader` (position of
    the source), `listing_row` and `is_outside_draw`: the image has a fault in the listing, and
    other images of its source are drawn or split by rank.

    Raises:
        InputError: a source cannot be used, its labels are not the teacher's, or two images have
            the same id.
    """
    if not plan.sources:
        return _empty_table(), []
    tables: list[pd.DataFrame] = []
    readers: list[Reader] = []
    # The parameter that selects images of each class -> the classes of what its sources selected.
    labels_by_key: dict[str, list[pd.Series]] = {}

    for position, source in enumerate(plan.sources):
        source_name = visible_name(source.name or default_name(source))
        where = f"data_ingestion.{plan.name}[{position}] ({source.type} {source_name})"
        opened, listing = _open_reader(source, plan.seed, where)
        # One generator per source: adding a source leaves the draws of the others as they were.
        rng = np.random.default_rng([plan.seed, position])
        table = _select_rows(listing, source, plan, rng, where)
        table["reader"] = position
        report = report_source(source_name, listing, table, plan.class_names)
        n_before_draw = 0
        if _draws(source):
            n_before_draw = int(in_share(listing["id"], source.share).sum())
        readers.append(Reader(opened, listing, report, where, n_before_draw))
        tables.append(table.drop(columns=["source_label", "rule"]))
        key = _key_that_needs_every_class(source)
        if key is not None:
            labels_by_key.setdefault(key, []).append(table["label"])

    wanted = pd.concat(tables, ignore_index=True)
    if wanted.empty:
        n_listed = sum(len(reader.listing) for reader in readers)
        raise InputError(
            f"data_ingestion.{plan.name}: no image is left of {n_listed:,}: check `share`, "
            "`exclude_labels`, `label_ranks` and `per_class` of its sources"
        )

    for key, parts in labels_by_key.items():
        # Over all sources together: one may hold the classes that another one lacks.
        labels = pd.concat(parts)
        check_all_classes_present(labels, plan.class_names, f"data_ingestion.{plan.name}", key)

    _check_ids(wanted, plan)
    return wanted, readers


def _key_that_needs_every_class(source: ImageSource) -> str | None:
    """Return the parameter of a source that asks for images of each class, or None."""
    if source.per_class is not None:
        return "per_class"
    # In a pool with `labels: truth`, a class may be missing.
    if source.label_ranks is not None and source.labels == "classes":
        return "label_ranks"
    return None


def _empty_table() -> pd.DataFrame:
    empty = index_schema().empty_table()
    index = empty.to_pandas()
    identity = index[IDENTITY_COLUMNS]
    return identity.assign(fault="", reader=0, listing_row=0, is_outside_draw=False)


def _open_reader(source: ImageSource, seed: int, where: str) -> tuple[Source, pd.DataFrame]:
    try:
        opened = open_source(source, seed)
        return opened, opened.listing()
    except InputError:
        raise
    # Each kind of remote file system raises errors of its own.
    except Exception as exc:
        is_remote = is_url(source.path or "") or is_url(source.root or "")
        if not is_remote and not isinstance(exc, OSError):
            raise
        fix = "check that it may be read"
        if is_remote:
            fix = "check the address, the network and your credentials"
        cause = without_credentials(f"{type(exc).__name__}: {exc}", source.path)
        raise InputError(f"{where}: {source.path} cannot be read ({cause}): {fix}") from exc


def _select_rows(
    listing: pd.DataFrame,
    source: ImageSource,
    plan: IngestionPlan,
    rng: np.random.Generator,
    where: str,
) -> pd.DataFrame:
    """Return the rows of a listing that the source's parameters select."""
    # Images of one file number their classes alike.
    columns = ["id", "label", "label_name", "version", "fault", "file"]
    columns = [name for name in columns if name in listing]
    listing_rows = np.arange(len(listing))
    table = listing[columns].assign(listing_row=listing_rows)
    is_in_share = in_share(table["id"], source.share)
    table = table[is_in_share]

    is_faulty = table["fault"].notna()
    faulty = table[is_faulty]
    usable = table[~is_faulty]
    usable = with_teacher_labels(usable, source, plan.class_names, where, listing)
    if source.labels == "ignore":
        usable["rule"] = None
    if source.label_ranks is not None:
        usable = usable[is_in_label_ranks(usable, listing, source, where)]

    # After the labels: `per_class` counts classes of the teacher.
    n_classes = len(plan.class_names)
    drawn = draw(usable["label"], source.per_class, source.limit, rng, n_classes)
    # A copy, which pandas 2 does not warn about when columns are set.
    table = usable.iloc[drawn].copy()
    table["is_outside_draw"] = False
    if len(faulty):
        # Faulty images are not drawn but must be accounted for; label and relevant become null.
        without_label = faulty.drop(columns="label")
        without_label["is_outside_draw"] = _draws(source)
        table = pd.concat([table, without_label])

    if source.name is not None:
        table["id"] = f"{source.name}/" + table["id"]
    table["source"] = source.name or default_name(source)
    return table.drop(columns=["label_name", "file"], errors="ignore")


def _draws(source: ImageSource) -> bool:
    """Return whether a source's parameters select a part of its images, other than by `share`."""
    keys = (source.per_class, source.limit, source.label_ranks)
    return any(key is not None for key in keys)


def _check_ids(wanted: pd.DataFrame, plan: IngestionPlan) -> None:
    ids = wanted["id"]
    repeated = ids[ids.duplicated()]
    if repeated.empty:
        return
    n_labels = wanted[ids.isin(repeated)].groupby("id")["label"].nunique()
    is_conflict = n_labels > 1
    example = repeated.iloc[0]
    note = ""
    if is_conflict.any():
        example = n_labels.index[is_conflict][0]
        note = f" (with different labels in {int(is_conflict.sum()):,} of them)"
    fix = (
        "Give each source a `name` of its own, which becomes the prefix of its ids, or fix the "
        "column `id`"
    )
    readers = wanted.loc[ids == example, "reader"]
    if readers.duplicated().any():
        fix = (
            "It is more than once in one source: fix the column `id`, or list the files as sources "
            "of their own, each with a `name`"
        )
    raise InputError(
        f"data_ingestion.{plan.name}: {len(repeated):,} ids occur more than once{note}, such as "
        f"{example!r}. {fix}"
    )
