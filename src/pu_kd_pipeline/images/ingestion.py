"""Making an image store hold what a plan asks for.

Shards that are still right are kept, and the other images are decoded once.

A shard is two files, pixels and index, each written under a temporary name and renamed; its index
is self-contained, so a shard that was finished before an interruption is found and kept.
Engines decode shards in other processes (`images.shard_decoding`); which images of a shard stay is
decided here, in the order of the shards, so that the store does not depend on the engine.
`store.json` is replaced last: readers see either the old store or the new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.engines.shards import is_local, map_shards, n_workers_for
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images.dark_images import DarkImages
from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from pu_kd_pipeline.images.label_conflicts import find_label_conflicts, warn_of_conflicts
from pu_kd_pipeline.images.listing import Reader, list_images
from pu_kd_pipeline.images.plan import IngestionPlan, choose_specification
from pu_kd_pipeline.images.quarantine import (
    CONFLICT,
    DUPLICATE,
    OK,
    check_any_is_usable,
    check_quarantine,
    counts_by_reason,
    duplicate_of,
)
from pu_kd_pipeline.images.reusable_shards import reusable_shards, write_index
from pu_kd_pipeline.images.shard_decoding import (
    UNFINISHED,
    DecodedShard,
    DecodingTasks,
    DecodingWork,
    keep_images,
    listing_parts,
    remove_decoded,
    unfinished_files,
)
from pu_kd_pipeline.images.shard_files import (
    index_file,
    index_schema,
    is_shard_file,
    pixel_file,
    read_index_table,
)
from pu_kd_pipeline.images.shard_writers import shard_writer
from pu_kd_pipeline.images.source_reports import log_report, write_reports
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.images.store import QUARANTINE_FILE, ImageStore, read_quarantine
from pu_kd_pipeline.images.store_file import STORE_FILE, Shard, Specification
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.progress import count_images, track
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.checked_json import to_checked_json
from pu_kd_pipeline.storage.folders import (
    Folder,
    file_exists,
    file_names,
    finish_file,
    remove_files,
    unfinished_store,
    write_text,
    writing_file,
)
from pu_kd_pipeline.storage.parquet_files import max_parquet_bytes, write_parquet

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 4096  # of a file of NumPy


@dataclass
class _UnfinishedStore:
    """A store while it is being written: what has been stored and set aside so far."""

    folder: Folder
    work: Path  # for unfinished files
    specification: Specification
    id_by_digest: dict[bytes, str] = field(default_factory=dict)
    quarantine: pd.DataFrame = field(default_factory=pd.DataFrame)
    shards: list[Shard] = field(default_factory=list)
    new_files: list[str] = field(default_factory=list)
    dark: DarkImages = field(default_factory=DarkImages)


def write_store(
    plan: IngestionPlan, folder: Folder | str, *, makes_again: bool = False
) -> ImageStore:
    """Make the folder hold what the plan asks for, reusing every shard that is still right.

    Args:
        plan: the images.
        folder: of the store.
        makes_again: read and decode every image, also those that are stored or quarantined.

    Raises:
        InputError: a source cannot be used, or more images than allowed are unusable; the folder is
            left as it was.
    """
    if isinstance(folder, str):
        folder = Path(folder)
    # Before the folder is made: sources that cannot be used leave nothing behind.
    wanted, readers = list_images(plan)
    for reader in readers:
        log_report(reader.report, reader.where)
    with unfinished_store(folder, UNFINISHED) as (work, was_killed):
        return _write_store(plan, folder, work, was_killed, makes_again, wanted, readers)


def _write_store(
    plan: IngestionPlan,
    folder: Folder,
    work: Path,
    was_killed: bool,
    makes_again: bool,
    wanted: pd.DataFrame,
    readers: list[Reader],
) -> ImageStore:
    # Not of `write_store` as a whole: an edited message must not make all shards again.
    maker = maker_fingerprint(
        Decoder, open_source, shard_writer, read_images, _write_shard, DecodingWork, _settle_shard
    )
    specification = choose_specification(plan, len(wanted), maker)
    store = _new_store(folder, work, specification, wanted)
    if not makes_again:
        _keep_finished_work(store, wanted)

    is_missing = _are_missing(store, wanted)
    _write_missing(store, plan, wanted, is_missing, readers, was_killed)
    conflicts = find_label_conflicts(store.quarantine, wanted, plan.class_names)
    if len(conflicts):
        warn_of_conflicts(conflicts, f"data_ingestion.{plan.name}")
        _set_aside(store, conflicts)
        is_missing = _are_missing(store, wanted)
        _write_missing(store, plan, wanted, is_missing, readers, was_killed)
    _check_quarantine(store, plan, wanted, readers)
    check_any_is_usable(plan, store.quarantine, len(wanted))
    store.dark.warn(f"data_ingestion.{plan.name}")
    write_reports(folder, [reader.report for reader in readers])
    store.shards.sort(key=_number_of)
    _commit(store, plan)
    return ImageStore.open(folder)


# --- what an earlier run has done already


def _new_store(
    folder: Folder, work: Path, specification: Specification, wanted: pd.DataFrame
) -> _UnfinishedStore:
    """Return a store without images, and with those quarantined that their source refuses."""
    store = _UnfinishedStore(folder, work, specification)
    faulty = wanted[wanted["fault"].notna()]
    quarantine = faulty[["id", "source", "version"]]
    store.quarantine = quarantine.assign(status=faulty["fault"])
    return store


def _keep_finished_work(store: _UnfinishedStore, wanted: pd.DataFrame) -> None:
    """Add what an earlier run has done: shards that are still right, and known quarantine."""
    specification = store.specification
    reusable = reusable_shards(store.folder, specification, wanted)
    for name, index in reusable.items():
        # `start` is unknown before all shards are; readers compute it from `store.json`.
        shard = Shard(name, len(index), 0)
        store.shards.append(shard)
        digests = map(bytes.fromhex, index["sha256"])
        ids_by_digest = zip(digests, index["id"], strict=True)
        store.id_by_digest.update(ids_by_digest)

    # Where the old store is damaged, its quarantined images are simply decoded again.
    with suppress(Exception):
        old_store = ImageStore.open(store.folder)
        if old_store.specification == specification:
            known = _known_quarantine(store, wanted)
            store.quarantine = pd.concat([store.quarantine, known], ignore_index=True)


def _known_quarantine(store: _UnfinishedStore, wanted: pd.DataFrame) -> pd.DataFrame:
    """Return the images that an earlier run quarantined, where it would do so again."""
    keys = ["id", "version", "source"]
    is_usable = wanted["fault"].isna()
    usable = wanted.loc[is_usable, keys]
    known = read_quarantine(store.folder).to_pandas()
    known = known.merge(usable, on=keys)
    status = known["status"]

    # A disk or a network that failed may work now, and labels may agree now.
    is_worth_a_try = (status == Reason.NOT_OPENED) | status.str.startswith(CONFLICT)

    # The image that a duplicate repeated may have left the store: the duplicate then joins it.
    is_duplicate = status.str.startswith(DUPLICATE)
    original_ids = status.str.removeprefix(duplicate_of(""))
    stored_ids = set(store.id_by_digest.values())
    is_unique_now = is_duplicate & ~original_ids.isin(stored_ids)

    return known[~is_worth_a_try & ~is_unique_now]


# --- what is missing


def _are_missing(store: _UnfinishedStore, wanted: pd.DataFrame) -> np.ndarray:
    """Return (N,) bool: the image is neither stored nor quarantined yet."""
    accounted_for = [*store.id_by_digest.values(), *store.quarantine["id"]]
    is_accounted_for = wanted["id"].isin(accounted_for)
    return ~is_accounted_for.to_numpy()


def _write_missing(
    store: _UnfinishedStore,
    plan: IngestionPlan,
    wanted: pd.DataFrame,
    is_missing: np.ndarray,
    readers: list[Reader],
    was_killed: bool,
) -> None:
    """Decode the missing images into new shards.

    If the last run was killed while it decoded, an image may have crashed its decoder and the
    process with it: the images are then decoded in other processes.
    """
    missing = wanted[is_missing]
    if not len(missing):
        return
    # The lowest numbers that no kept shard has: a shard that is made again, and images that are
    # decoded again and turn out to be the same, keep their place and name.
    used_numbers = set(map(_number_of, store.shards))
    free_numbers = (number for number in count() if number not in used_numbers)
    shard_size = plan.store.shard_size
    tasks = DecodingTasks(plan.name, missing, readers, shard_size, free_numbers)

    if was_killed:
        logger.warning(
            "%s: the last run was killed while it decoded; images are now decoded in other "
            "processes",
            plan.name,
        )
    if not is_local(plan.engine, len(tasks)) and _can_be_shared(store, plan, tasks, readers):
        _write_by_engine(store, plan, wanted, tasks, readers, was_killed)
        return

    decoder = Decoder.of(store.specification)
    decode_all = decoder.decode_all_in_processes if was_killed else decoder.decode_all
    raw_images = _counted(read_images(missing, readers), f"{plan.name} images", len(missing))
    for position, name in enumerate(tasks):
        rows = tasks.rows(name)
        _make_room(store, len(rows), is_first=position == 0)
        raw_images_of_shard = islice(raw_images, len(rows))
        decoded = decode_all(raw_images_of_shard, plan.store.n_workers)
        _write_shard(store, tasks.number(name), rows, decoded)
        # A hopeless pool is given up here, not after hours of decoding.
        _check_quarantine(store, plan, wanted, readers)


def _make_room(store: _UnfinishedStore, n_images: int, *, is_first: bool) -> None:
    """Make room in the cache of a remote store for the shard that is written next."""
    if isinstance(store.folder, Path):
        return
    specification = store.specification
    if specification.kind == "packed":
        image_bytes = specification.channels * specification.size_px**2
        store.folder.make_room(n_images * image_bytes + _MAX_HEADER_BYTES)
    elif is_first:
        # Its size is not known. For later ones, `finish_file` makes room.
        store.folder.make_room(store.folder.cache_bytes)


def _check_quarantine(
    store: _UnfinishedStore, plan: IngestionPlan, wanted: pd.DataFrame, readers: list[Reader]
) -> None:
    """Check that no more images are quarantined than allowed.

    Raises:
        InputError: there are more. The shards that were written are removed then; after any other
            end of a run they are worth keeping.
        SourceLostError: there are more, but only because of those that could not be opened.
    """
    try:
        check_quarantine(plan, store.quarantine, wanted, _n_before_draws(readers))
    except SourceLostError:
        raise
    except InputError:
        remove_files(store.folder, store.new_files)
        raise


# --- decoding by other processes


def _can_be_shared(
    store: _UnfinishedStore, plan: IngestionPlan, tasks: DecodingTasks, readers: list[Reader]
) -> bool:
    """Return whether other processes can read parts of the sources; if not, log why."""
    if not isinstance(store.folder, Path):
        # Shards that wait for an earlier one could take more than the cache may.
        logger.info(
            "%s: images are decoded in this process, because the store is on object storage",
            plan.name,
        )
        return False
    for position in tasks.sources():
        reader = readers[position]
        source = plan.sources[position]
        reason = reader.source.why_not_shared(plan.store.shard_size)
        if any(text != without_credentials(text) for text in (source.path, source.root) if text):
            reason = "its URL holds credentials, which would be written to the data folder"
        if reason is not None:
            logger.info("%s: images are decoded in this process, because %s", reader.where, reason)
            return False
    return True


def _write_by_engine(
    store: _UnfinishedStore,
    plan: IngestionPlan,
    wanted: pd.DataFrame,
    tasks: DecodingTasks,
    readers: list[Reader],
    was_killed: bool,
) -> None:
    """Let the engine decode the shards, and add them to the store in their order."""
    folder = store.work
    n_threads = 1  # an actor of Ray has reserved one CPU
    if plan.engine.kind == "processes":
        n_threads = max(1, plan.store.n_workers // n_workers_for(plan.engine, len(tasks)))
    # No others: what is sent is a file in the data folder, and a source that is not needed may have
    # credentials in its URL.
    sources = {position: readers[position].source for position in tasks.sources()}
    work = DecodingWork(
        sources, store.specification, folder.absolute(), n_threads, isolates=was_killed
    )
    n_images = sum(len(tasks.rows(name)) for name in tasks)
    n_decoded = 0

    def counted(results: Iterator[tuple[str, DecodedShard]]) -> Iterator[tuple[str, DecodedShard]]:
        nonlocal n_decoded
        for name, decoded in results:
            n_decoded += len(tasks.rows(name))
            yield name, decoded

    def unit() -> str:
        return f"shards, {n_decoded:,} of {n_images:,} images"

    is_worth_isolating = False
    try:
        with closing(map_shards(work, tasks, plan.engine, folder)) as results:
            shown = track(counted(results), name=f"{plan.name} images", total=len(tasks), unit=unit)
            for name, decoded in _in_order(shown, tasks):
                _settle_shard(store, tasks.number(name), tasks.rows(name), decoded)
                # A hopeless pool is given up here, not after hours of decoding.
                _check_quarantine(store, plan, wanted, readers)
    except SourceLostError:
        raise
    except UnavailableError:
        # A worker was lost again and again: the next run decodes with more care if it finds this.
        is_worth_isolating = True
        raise
    finally:
        remove_decoded(folder)
        if not is_worth_isolating:
            for file in unfinished_files(folder):
                file.unlink(missing_ok=True)


def _in_order(
    results: Iterator[tuple[str, DecodedShard]], names: Mapping[str, object]
) -> Iterator[tuple[str, DecodedShard]]:
    """Yield results in the order of the names; after an error, also those behind a failed one."""
    found: dict[str, DecodedShard] = {}
    expected = deque(names)
    try:
        for name, decoded in results:
            found[name] = decoded
            while expected and expected[0] in found:
                first = expected.popleft()
                yield first, found.pop(first)
    # Whatever ended the results: it is raised again, after what was decoded is kept.
    except Exception:
        for name in expected:
            if name in found:
                yield name, found.pop(name)
        raise


def _settle_shard(
    store: _UnfinishedStore, number: int, rows: pd.DataFrame, decoded: DecodedShard
) -> None:
    """Add a shard that was decoded elsewhere, as `_write_shard` adds one that is decoded here."""
    statuses: list[str] = []
    digests: list[str] = []
    row_of: dict[bytes, int] = {}
    kept_rows: list[int] = []
    for position, image_id in enumerate(rows["id"]):
        reason = decoded.reasons.get(position)
        if reason is not None:
            statuses.append(reason)
            continue

        digest = decoded.digests[position].tobytes()
        # Each picture of the shard is in its file once.
        row = row_of.setdefault(digest, len(row_of))
        if _is_new(store, image_id, digest, statuses, digests):
            kept_rows.append(row)
            store.dark.see(image_id, decoded.brightest[position : position + 1])

    file = decoded.file
    if kept_rows and len(kept_rows) < len(row_of):
        file = keep_images(decoded, kept_rows, store.specification)
    checksums = [decoded.checksums[row] for row in kept_rows]
    _add_shard(store, number, file, rows.assign(status=statuses), digests, checksums)


def _is_new(
    store: _UnfinishedStore, image_id: str, digest: bytes, statuses: list[str], digests: list[str]
) -> bool:
    """Say whether no image before has these pixels; add the image's status, and a new digest."""
    original_id = store.id_by_digest.get(digest)
    if original_id is not None:
        statuses.append(duplicate_of(original_id))
        return False

    store.id_by_digest[digest] = image_id
    statuses.append(OK)
    digests.append(digest.hex())
    return True


def _counted(
    images: Iterator[RawImage | Unusable], name: str, total: int
) -> Iterator[RawImage | Unusable]:
    with count_images(name, total) as count:
        for image in images:
            # Before: the consumer does not ask again after the last one.
            count(1)
            yield image


def _number_of(shard: Shard) -> int:
    """Return the number that the name of a shard begins with."""
    number, _, _ = shard.name.partition("-")
    return int(number)


def _set_aside(store: _UnfinishedStore, conflicts: pd.DataFrame) -> None:
    """Quarantine images with conflicting labels, and give up the shards that hold one of them."""
    conflicting_ids = set(conflicts["id"])
    kept_shards: list[Shard] = []
    kept_ids: set[str] = set()
    # Not all that lie in the folder: some may be there that must be made again.
    for shard in store.shards:
        index = read_index_table(store.folder, shard.name, ["id"])
        ids = index["id"].to_pylist()
        if conflicting_ids.isdisjoint(ids):
            kept_shards.append(shard)
            kept_ids.update(ids)
    store.shards = kept_shards
    for digest, image_id in list(store.id_by_digest.items()):
        if image_id not in kept_ids:
            del store.id_by_digest[digest]

    is_conflict = store.quarantine["id"].isin(conflicting_ids)
    others = store.quarantine[~is_conflict]
    store.quarantine = pd.concat([others, conflicts], ignore_index=True)


def _n_before_draws(readers: list[Reader]) -> int:
    return sum(reader.n_before_draw for reader in readers)


def read_images(rows: pd.DataFrame, readers: list[Reader]) -> Iterator[RawImage | Unusable]:
    """Yield the raw images of some rows of `list_images`, in their order."""
    for position, wanted in listing_parts(rows, readers):
        yield from readers[position].source.read(wanted)


def _write_shard(
    store: _UnfinishedStore,
    number: int,
    rows: pd.DataFrame,
    decoded: Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]],
) -> None:
    """Write one shard of the usable and new images among `rows`; the others are quarantined."""
    temporary = store.work / f"{UNFINISHED}{number:05d}.{os.getpid()}.tmp"
    statuses: list[str] = []
    digests: list[str] = []

    try:
        with shard_writer(temporary, store.specification) as writer:
            for image_id, (raw, pixels) in zip(rows["id"], decoded, strict=True):
                if isinstance(pixels, Unusable):
                    statuses.append(str(pixels.reason))
                    continue

                # Of the decoded pixels: two files of one image may be compressed differently.
                digest = hashlib.sha256(pixels.data).digest()
                if _is_new(store, image_id, digest, statuses, digests):
                    writer.append(raw, pixels)
                    store.dark.see(image_id, pixels)

        table = rows.assign(status=statuses)
        _add_shard(store, number, temporary, table, digests, writer.checksums)
    finally:
        temporary.unlink(missing_ok=True)


def _add_shard(
    store: _UnfinishedStore,
    number: int,
    temporary: Path,
    table: pd.DataFrame,
    digests: list[str],
    checksums: list[int],
) -> None:
    """Add a shard to the store, and the images that are not in it to the quarantine.

    Args:
        store: that it is added to.
        number: of the shard.
        temporary: file with the images of the shard.
        table: its rows of `list_images`, with the `status` of each image.
        digests: SHA-256 of the pixels of the images in the file.
        checksums: of these images.
    """
    is_ok = table["status"] == OK
    rejected = table.loc[~is_ok, ["id", "source", "version", "status"]]
    store.quarantine = pd.concat([store.quarantine, rejected], ignore_index=True)

    # Without a usable image there is no shard.
    if digests:
        stored = table[is_ok]
        row_numbers = np.arange(len(digests))
        index = stored.assign(sha256=digests, row=row_numbers, checksum=checksums)
        shard = _finish_shard(store, number, temporary, index)
        store.shards.append(shard)


def _finish_shard(
    store: _UnfinishedStore, number: int, temporary: Path, index: pd.DataFrame
) -> Shard:
    """Give the pixels their name, which depends on their content, and write the index."""
    folder = store.folder
    table = pa.Table.from_pandas(index, schema=index_schema(), preserve_index=False)

    # Without versions and maker: images that were only touched, and another maker of the same
    # pixels, keep the store's fingerprint.
    about = json.dumps(store.specification.content_fields(), sort_keys=True)
    digest = hashlib.sha256(about.encode())
    for column in ("id", "source", "label", "relevant", "sha256"):
        values = table[column].to_pylist()
        text = json.dumps(values)
        digest.update(text.encode())
    short_digest = digest.hexdigest()[:12]
    name = f"{number:05d}-{short_digest}"

    pixels = pixel_file(name, store.specification.kind)
    index_name = index_file(name)
    # A shard that was there before must survive a run that is refused.
    for file in (pixels, index_name):
        if not file_exists(folder, file):
            store.new_files.append(file)

    finish_file(folder, temporary, pixels)
    with writing_file(folder, index_name, max_parquet_bytes(table)) as path:
        write_index(path, name, table, store.specification)

    return Shard(name, len(index), 0)


def _commit(store: _UnfinishedStore, plan: IngestionPlan) -> None:
    """Make the new state the one that readers see, then remove the files that no longer belong."""
    folder = store.folder
    kind = store.specification.kind
    columns = ["id", "source", "status", "version"]
    quarantine = store.quarantine[columns].astype("str")
    table = pa.Table.from_pandas(quarantine, preserve_index=False)
    with writing_file(folder, QUARANTINE_FILE, max_parquet_bytes(table)) as path:
        write_parquet(table, path, QUARANTINE_FILE)

    n_images = 0
    shards = []
    for shard in store.shards:
        n_images += shard.n
        shards.append({"name": shard.name, "n": shard.n})
    about = {
        "specification": asdict(store.specification),
        "n_images": n_images,
        "shards": shards,
        "quarantine": counts_by_reason(store.quarantine["status"]),
        "class_names": list(plan.class_names),
    }
    write_text(folder, STORE_FILE, to_checked_json(about))

    # Only after the new `store.json`: the old one must never name a file that is gone.
    current: set[str] = set()
    for shard in store.shards:
        current.add(pixel_file(shard.name, kind))
        current.add(index_file(shard.name))
    own = set(filter(is_shard_file, file_names(folder)))
    remove_files(folder, sorted(own - current))
