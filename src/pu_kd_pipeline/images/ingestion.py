"""Making an image store hold what a plan says: list, keep the shards that are still right, decode the rest once.

A shard is two files, pixels and index, each written under a temporary name and renamed; its index is self-contained,
so a shard that was finished before an interruption is found and kept. `store.json` is replaced last: readers see the
store as it was or as it shall be.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from pu_kd_pipeline.images.labels import (
    check_every_class_is_there,
    draw,
    in_share,
    with_teacher_labels,
)
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.shard_files import (
    index_file,
    index_schema,
    open_encoded,
    open_packed,
    pixel_file,
)
from pu_kd_pipeline.images.shard_writers import EncodedWriter, PackedWriter
from pu_kd_pipeline.images.sources.base import Source, SourceLostError, default_name
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.images.store import (
    QUARANTINE_FILE,
    STORE_FILE,
    ImageStore,
    Shard,
    Specification,
)
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_file

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage
    from pu_kd_pipeline.params.data_ingestion import ImageSource

logger = logging.getLogger(__name__)
OK = "ok"
DUPLICATE = "duplicate"  # the status is "duplicate of <id>"
_SHARD_NAME = re.compile(r"[0-9]{5,9}-[0-9a-f]{12}")
_METADATA_KEY = b"specification"
_IDENTITY = [
    "id",
    "version",
    "source",
    "label",
    "relevant",
]  # a stored image is right while these are what is wanted
_UNFINISHED = ".shard-"  # begins the name of a shard that is being written; no end but a violent one leaves it behind


@dataclass(frozen=True)
class Reader:
    """A source with its listing, so that images are read by their row in it."""

    source: Source
    listing: pd.DataFrame


@dataclass
class _Progress:
    """What has been kept and set aside so far."""

    id_by_digest: dict[bytes, str]
    quarantine: pd.DataFrame
    shards: list[Shard] = field(default_factory=list)
    new_files: list[Path] = field(default_factory=list)


def write_store(plan: IngestionPlan, folder: Path | str) -> ImageStore:
    """Make the folder hold what the plan says, reusing every shard that is still right, and return the store.

    Raises:
        InputError: a source cannot be used, or more images than allowed are unusable; the folder is left as it was.
    """
    folder = Path(folder)
    wanted, readers = list_images(plan)
    specification = _specification(plan, len(wanted))
    folder.mkdir(parents=True, exist_ok=True)
    leftovers = remove_leftovers(folder)
    kept = _kept_shards(folder, specification, wanted)
    progress = _resume(folder, specification, wanted, kept)
    is_done = (
        wanted["id"].isin([*progress.id_by_digest.values(), *progress.quarantine["id"]]).to_numpy()
    )
    try:
        was_killed = any(leftover.name.startswith(_UNFINISHED) for leftover in leftovers)
        _write_missing(
            folder, plan, specification, wanted, wanted[~is_done], readers, progress, was_killed
        )
        _check_quarantine(plan, progress.quarantine, len(wanted))
    except SourceLostError:
        raise
    except InputError:  # after any other end the finished shards are worth keeping
        for file in progress.new_files:
            file.unlink(missing_ok=True)
        raise
    _commit(folder, plan, specification, progress)
    return ImageStore.open(folder)


def list_images(plan: IngestionPlan) -> tuple[pd.DataFrame, list[Reader]]:
    """Return every image that the store shall hold or account for, and the readers of the sources.

    The table has `id`, `source`, `label`, `relevant`, `version`, `fault`, `reader` (position of the source) and
    `listing_row`.

    Raises:
        InputError: a source cannot be used, its labels are not the teacher's, or two images have one id.
    """
    tables: list[pd.DataFrame] = []
    readers: list[Reader] = []
    drawn_classes: list[pd.Series] = []
    for position, source in enumerate(plan.sources):
        where = f"data_ingestion.{plan.name}[{position}] ({source.type} {source.name or default_name(source)})"
        reader, listing = _opened(source, plan.seed, where)
        readers.append(Reader(reader, listing))
        table = _chosen(listing, source, plan, np.random.default_rng([plan.seed, position]), where)
        table["reader"] = position
        tables.append(table)
        if source.per_class is not None:
            drawn_classes.append(table["label"])
    if drawn_classes:
        check_every_class_is_there(
            pd.concat(drawn_classes), plan.class_names, f"data_ingestion.{plan.name}"
        )
    if not tables:
        columns = (
            index_schema()
            .empty_table()
            .to_pandas()[_IDENTITY]
            .assign(fault="", reader=0, listing_row=0)
        )
        return columns, []
    wanted = pd.concat(tables, ignore_index=True)
    if wanted.empty:
        raise InputError(
            f"data_ingestion.{plan.name}: no image is left of {sum(len(each.listing) for each in readers):,}: check "
            "`share`, `exclude_labels` and `per_class` of its sources"
        )
    _check_ids(wanted["id"], plan)
    return wanted, readers


def _opened(source: ImageSource, seed: int, where: str) -> tuple[Source, pd.DataFrame]:
    """Return the reader of a source and its listing."""
    try:
        reader = open_source(source, seed)
        return reader, reader.listing()
    except InputError:
        raise
    except Exception as exc:  # each kind of remote file system has errors of its own
        is_remote = "://" in (source.path or "")
        if not is_remote and not isinstance(exc, OSError):
            raise
        mend = (
            "check the address, the network and your credentials"
            if is_remote
            else "check that it may be read"
        )
        raise InputError(
            f"{where}: {source.path} cannot be read ({type(exc).__name__}: {exc}): {mend}"
        ) from exc


def _chosen(
    listing: pd.DataFrame,
    source: ImageSource,
    plan: IngestionPlan,
    rng: np.random.Generator,
    where: str,
) -> pd.DataFrame:
    """Return the rows of a listing that the source's parameters choose."""
    table = listing[["id", "label", "label_name", "version", "fault"]].assign(
        listing_row=np.arange(len(listing))
    )
    table = table[in_share(table["id"], source.share)]
    faulty, table = table[table["fault"].notna()], table[table["fault"].isna()]
    table = with_teacher_labels(table, source, plan.class_names, where)
    table = table.iloc[
        draw(table["label"], source.per_class, source.limit, rng, len(plan.class_names))
    ]
    if len(faulty):
        table = pd.concat(
            [table, faulty.drop(columns="label")]
        )  # which leaves label and relevant null
    if source.name is not None:
        table["id"] = f"{source.name}/" + table["id"]
    table["source"] = source.name or default_name(source)
    return table.drop(columns="label_name")


def _check_ids(ids: pd.Series, plan: IngestionPlan) -> None:
    twice = ids[ids.duplicated()]
    if len(twice):
        raise InputError(
            f"data_ingestion.{plan.name}: {len(twice):,} ids occur more than once, such as {twice.iloc[0]!r}. Give "
            "each source a `name` of its own, which becomes the prefix of its ids, or mend the column `id`"
        )


def _specification(plan: IngestionPlan, n_images: int) -> Specification:
    kind = plan.store.kind
    if kind == "auto":
        packed_bytes = n_images * plan.channels * plan.size_px**2
        is_small = (
            plan.size_px <= plan.store.packed_max_size_px
            or packed_bytes <= plan.store.disk_budget_gb * 10**9
        )
        kind = "packed" if is_small else "encoded"
    return Specification(kind, plan.channels, plan.size_px, plan.store.max_image_pixels)


def _identity(table: pd.DataFrame) -> pd.Index:
    """Return one hash an image of all that must be unchanged for a stored image to be right."""
    return pd.Index(
        pd.util.hash_pandas_object(table[_IDENTITY].astype("str").fillna(""), index=False)
    )


def _kept_shards(
    folder: Path, specification: Specification, wanted: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return the indexes of the shards that are whole, of this specification, and hold only what is wanted."""
    known = _identity(wanted)
    kept: dict[str, pd.DataFrame] = {}
    taken: set[str] = set()
    for file in sorted(folder.glob("*.index.parquet")):
        name = file.name.removesuffix(".index.parquet")
        index = _read_index(folder, name, specification)
        if (
            index is None
            or not _identity(index).isin(known).all()
            or not taken.isdisjoint(index["id"])
        ):
            continue
        kept[name] = index
        taken.update(index["id"])
    return kept


def _read_index(folder: Path, name: str, specification: Specification) -> pd.DataFrame | None:
    """Return the index of a shard, or None where shard or index are damaged or of another specification."""
    with suppress(Exception):  # a damaged file makes its reader raise nearly anything
        table = pq.read_table(index_file(folder, name), page_checksum_verification=True)
        if not _SHARD_NAME.fullmatch(name) or table.schema.remove_metadata() != index_schema():
            return None
        if (table.schema.metadata or {}).get(_METADATA_KEY) == _encoded_specification(
            specification
        ):
            if specification.kind == "packed":
                shape = (
                    table.num_rows,
                    specification.channels,
                    specification.size_px,
                    specification.size_px,
                )
                open_packed(folder, name, shape)
            else:
                open_encoded(folder, name, table.num_rows)
            dtypes = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
            return table.to_pandas(types_mapper=dtypes.get)
    return None


def _encoded_specification(specification: Specification) -> bytes:
    return json.dumps(asdict(specification), sort_keys=True).encode()


def _resume(
    folder: Path, specification: Specification, wanted: pd.DataFrame, kept: dict[str, pd.DataFrame]
) -> _Progress:
    """Return what need not be done again: the kept shards, and the images that were quarantined before."""
    shards = [Shard(name, len(index), 0) for name, index in kept.items()]
    stored = {
        bytes.fromhex(digest): image_id
        for index in kept.values()
        for digest, image_id in zip(index["sha256"], index["id"], strict=True)
    }
    faulty = wanted[wanted["fault"].notna()]
    quarantine = faulty[["id", "source", "version"]].assign(status=faulty["fault"])
    with suppress(Exception):  # where it is damaged, the images are looked at again
        if ImageStore.open(folder).specification == specification:
            before = pd.read_parquet(folder / QUARANTINE_FILE)
            now = wanted.loc[wanted["fault"].isna(), ["id", "version", "source"]]
            before = before.merge(now, on=["id", "version", "source"])
            twins = before["status"].str.removeprefix(f"{DUPLICATE} of ")
            is_duplicate = before["status"].str.startswith(DUPLICATE)
            is_final = (before["status"] != Reason.NOT_OPENED) & (
                ~is_duplicate | twins.isin(set(stored.values()))
            )
            quarantine = pd.concat([quarantine, before[is_final]], ignore_index=True)
    return _Progress(stored, quarantine, shards)


def _write_missing(
    folder: Path,
    plan: IngestionPlan,
    specification: Specification,
    wanted: pd.DataFrame,
    missing: pd.DataFrame,
    readers: list[Reader],
    progress: _Progress,
    was_killed: bool,
) -> None:
    """Decode the missing images into new shards.

    Where the last run was killed at one of them, an image may have brought its decoder down, and this process with it:
    they are then decoded by other processes.
    """
    decoder = Decoder(specification.channels, specification.size_px, specification.max_image_pixels)
    decode_all = decoder.decode_all_apart if was_killed else decoder.decode_all
    if was_killed and len(missing):
        logger.warning(
            "%s: the last run was killed as it decoded; images are now decoded apart from it",
            plan.name,
        )
    number = 1 + max((int(shard.name.split("-")[0]) for shard in progress.shards), default=-1)
    raws = track(
        _raw_images(missing, readers), name=f"{plan.name} images", total=len(missing), unit="images"
    )
    for start in range(0, len(missing), plan.store.shard_size):
        rows = missing.iloc[start : start + plan.store.shard_size]
        raws_of_shard = islice(raws, len(rows))
        decoded = decode_all(raws_of_shard, plan.store.n_workers)
        _write_shard(folder, number, rows, decoded, specification, progress)
        _check_quarantine(plan, progress.quarantine, len(wanted))
        number += 1


def _raw_images(rows: pd.DataFrame, readers: list[Reader]) -> Iterator[RawImage | Unusable]:
    for position in rows["reader"].unique():
        reader = readers[position]
        yield from reader.source.read(
            reader.listing.iloc[rows.loc[rows["reader"] == position, "listing_row"]]
        )


def _write_shard(
    folder: Path,
    number: int,
    rows: pd.DataFrame,
    decoded: Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]],
    specification: Specification,
    progress: _Progress,
) -> None:
    """Write one shard of the usable and new images among `rows`; the others join the quarantine."""
    temporary = folder / f"{_UNFINISHED}{number:05d}.{os.getpid()}.tmp"
    statuses: list[str] = []
    digests: list[str] = []
    try:
        with (PackedWriter if specification.kind == "packed" else EncodedWriter)(
            temporary, specification
        ) as writer:
            for image_id, (raw, pixels) in zip(rows["id"], decoded, strict=True):
                digest = (
                    b"" if isinstance(pixels, Unusable) else hashlib.sha256(pixels.data).digest()
                )
                twin = progress.id_by_digest.get(digest)
                if isinstance(pixels, Unusable):
                    statuses.append(str(pixels.reason))
                elif twin is not None:
                    statuses.append(f"{DUPLICATE} of {twin}")
                else:
                    progress.id_by_digest[digest] = image_id
                    statuses.append(OK)
                    digests.append(digest.hex())
                    writer.append(raw, pixels)
        table = rows.assign(status=statuses)
        progress.quarantine = pd.concat(
            [
                progress.quarantine,
                table.loc[table["status"] != OK, ["id", "source", "version", "status"]],
            ],
            ignore_index=True,
        )
        if digests:
            index = table[table["status"] == OK].assign(sha256=digests, row=np.arange(len(digests)))
            progress.shards.append(
                _finish_shard(folder, number, temporary, index, specification, progress.new_files)
            )
    finally:
        temporary.unlink(missing_ok=True)


def _finish_shard(
    folder: Path,
    number: int,
    temporary: Path,
    index: pd.DataFrame,
    specification: Specification,
    new_files: list[Path],
) -> Shard:
    """Give the pixels their name, which their content decides, and put the index beside them."""
    table = pa.Table.from_pandas(index, schema=index_schema(), preserve_index=False)
    digest = hashlib.sha256(_encoded_specification(specification))
    for column in ("id", "source", "label", "relevant", "sha256"):
        digest.update(json.dumps(table[column].to_pylist()).encode())
    name = f"{number:05d}-{digest.hexdigest()[:12]}"
    files = [pixel_file(folder, name, specification.kind), index_file(folder, name)]
    new_files += [file for file in files if not file.exists()]
    os.replace(temporary, files[0])
    with replacing_file(files[1]) as path:
        described = table.replace_schema_metadata(
            {_METADATA_KEY: _encoded_specification(specification)}
        )
        pq.write_table(described, path, write_page_checksum=True)
    return Shard(name, len(index), 0)


def counts_by_reason(statuses: pd.Series) -> dict[str, int]:
    """Return how many images were set aside for each reason, most first; duplicates count as one reason."""
    reasons = ["duplicate" if status.startswith(DUPLICATE) else status for status in statuses]
    return dict(Counter(reasons).most_common())


def _check_quarantine(plan: IngestionPlan, quarantine: pd.DataFrame, n_images: int) -> None:
    most = plan.store.max_quarantined_share * n_images
    n_not_opened = int((quarantine["status"] == Reason.NOT_OPENED).sum())
    if len(quarantine) > most >= len(quarantine) - n_not_opened:
        raise SourceLostError(
            f"data_ingestion.{plan.name}: {n_not_opened:,} of {n_images:,} images could not be opened, such as "
            f"{quarantine.loc[quarantine['status'] == Reason.NOT_OPENED, 'id'].iloc[0]!r}: is the source still there, "
            "and may it be read? Finished shards are kept: the same command goes on from there"
        )
    if len(quarantine) > most:
        reasons = ", ".join(
            f"{reason} {n:,}" for reason, n in counts_by_reason(quarantine["status"]).items()
        )
        raise InputError(
            f"data_ingestion.{plan.name}: {len(quarantine):,} of {n_images:,} images cannot be used ({reasons}; such "
            f"as {quarantine['id'].iloc[0]!r}: {quarantine['status'].iloc[0]}), more than the share "
            f"{plan.store.max_quarantined_share} that data_ingestion.store.max_quarantined_share allows. "
            "Mend the images, or raise the limit; nothing was written"
        )


def _commit(
    folder: Path, plan: IngestionPlan, specification: Specification, progress: _Progress
) -> None:
    """Make the new state the one that readers see, then remove the files that no longer belong."""
    with replacing_file(folder / QUARANTINE_FILE) as path:
        columns = progress.quarantine[["id", "source", "status", "version"]].astype("str")
        columns.to_parquet(path, index=False)
    about = {
        "specification": asdict(specification),
        "n_images": sum(shard.n for shard in progress.shards),
        "shards": [{"name": shard.name, "n": shard.n} for shard in progress.shards],
        "quarantine": counts_by_reason(progress.quarantine["status"]),
        "class_names": list(plan.class_names),
    }
    with replacing_file(folder / STORE_FILE) as path:
        path.write_text(json.dumps(about, indent=2) + "\n")
    names = [shard.name for shard in progress.shards]
    current = {pixel_file(folder, name, specification.kind) for name in names} | {
        index_file(folder, n) for n in names
    }
    for pattern in ("*.npy", "*.images.arrow", "*.index.parquet"):
        for file in set(folder.glob(pattern)) - current:
            file.unlink()
