"""Images in WebDataset shards: tar archives of samples."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.archives import archive_version, why_not_shared
from pu_kd_pipeline.images.sources.base import PASSED_OVER, SourceLostError, listing_table
from pu_kd_pipeline.images.sources.files import (
    SourceFile,
    expanded_ranges,
    file_state,
    file_system,
    has_mark,
    has_wildcard,
    is_hidden,
    is_local,
    is_remote_folder,
    local_matches,
    lost_source_error,
    printable,
    remote_version,
    state_of,
    unmarked_warning,
    with_marks,
)
from pu_kd_pipeline.images.sources.path_names import hint_of_folders
from pu_kd_pipeline.images.sources.tar_members import Member, open_archive
from pu_kd_pipeline.images.sources.webdataset_labels import LabelReader
from pu_kd_pipeline.images.sources.webdataset_samples import images_of, read_shard
from pu_kd_pipeline.masking import visible_name, without_credentials

if TYPE_CHECKING:
    from pu_kd_pipeline.images.sources.tar_members import ForwardStream
    from pu_kd_pipeline.params.data_ingestion import ImageSource


logger = logging.getLogger(__name__)

# Of the files in a folder; a file that is named itself may have any.
SHARD_EXTENSIONS = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    *(".tar.zst", ".tar.lz4"),
)
_PATTERN = re.compile(r"[*?[{]")


class WebDatasetSource:
    """Tar archives of samples: files with the same name up to the first dot of the file name.

    One archive, a folder, a glob or a range such as `shard-{000..127}.tar`; local or at any fsspec
    URL; plain or compressed. `image_column` is the extension of the image, and `label_column` that
    of the label (`cls`), or a field of a JSON file (`json.label`). An image is called by its shard
    and the key of its sample. Archives are read from beginning to end, and never unpacked.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._path = str(source.path)
        self._fs, self._root = file_system(self._path)
        self._source = source
        names = (source.image_column or "").lower().split(";")
        self._wanted = tuple(name.strip(" .") for name in names if name.strip(" ."))
        self._n_unmarked = 0  # remote files whose changes cannot be seen in full
        self._passed_over: Counter[str] = Counter()
        # Images of the largest archive that cannot be moved in; known once it was listed.
        self._longest_stream = 0
        patterns = expanded_ranges(self._root)
        is_folder = patterns == [self._root] and self._is_folder(self._root)
        self._folder = _named_folder(self._root, is_folder)
        found = []
        for pattern in patterns:
            found += self._files_at(pattern)
        # Without those that two patterns match.
        self._files = sorted(set(found))

    @staticmethod
    def state(source: ImageSource) -> str:
        return state_of(lambda: WebDatasetSource(source, seed=0)._files)

    def listing(self) -> pd.DataFrame:
        label_reader = LabelReader(self._source)
        passed_over = Counter(self._passed_over)
        extensions: Counter[str] = Counter()
        columns: dict[str, list[Any]] = {
            name: [] for name in ("id", "version", "fault", "file", "offset", "size")
        }
        for number, file in enumerate(self._files):
            shard_name = self._name_of(file.path)
            shard = read_shard(self._fs, file.path, label_reader.extensions)
            n_before = len(columns["id"])
            for image in images_of(shard, self._wanted):
                # Text, and never a path
                columns["id"].append(f"{shard_name}/{printable(image.sample.key)}")
                columns["version"].append(file.version)
                columns["fault"].append(image.fault or None)
                columns["file"].append(number)
                columns["offset"].append(image.offset)
                columns["size"].append(image.size)
                label_reader.add(shard, image.sample)
            n_in_shard = len(columns["id"]) - n_before
            if not shard.can_seek:
                self._longest_stream = max(self._longest_stream, n_in_shard)
            for sample in shard.samples.values():
                extensions.update(list(sample.members))
            passed_over.update(shard.passed_over)

        self._check_images(columns["id"], extensions)
        labels, names = label_reader.columns(self._path)
        if self._n_unmarked:
            logger.warning(unmarked_warning(self._path, self._n_unmarked, len(self._files)))
        table = listing_table(
            columns["id"],
            labels,
            names,
            versions=columns["version"],
            faults=columns["fault"],
            file=columns["file"],
            offset=columns["offset"],
            size=columns["size"],
        )
        table.attrs[PASSED_OVER] = dict(passed_over)
        return table

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        for number in rows["file"].unique():
            found = self._files[number]
            file = found.path
            # The positions of images in another shard of this name would be wrong.
            if is_local(self._fs) and file_state(file)[0] != found.version:
                raise SourceLostError(lost_source_error(file, "it was replaced or removed"))
            of_file = rows[rows["file"] == number]
            try:
                with open_archive(self._fs, file) as stream:
                    yield from _images(stream, of_file)
            # Each kind of remote file system has errors of its own, and so has damage.
            except Exception as exc:
                cause = without_credentials(f"{type(exc).__name__}: {exc}", self._path)
                shown = without_credentials(file)
                raise SourceLostError(lost_source_error(shown, cause)) from exc

    def why_not_shared(self, n_images: int) -> str | None:
        if self._longest_stream > n_images:
            return (
                f"an archive of {self._longest_stream:,} images is compressed, or its server sends "
                f"no parts of it: it would be read from its beginning for each {n_images:,} again"
            )
        return why_not_shared(self._fs)

    def _check_images(self, ids: list[str], extensions: Counter[str]) -> None:
        """Refuse shards without any image, with what they hold instead."""
        if ids:
            return
        found = "they have no samples"
        if extensions:
            most = [visible_name(name) for name, _ in extensions.most_common(10)]
            found = f"found: {', '.join(most)}"
        wanted = "files of images"
        if self._wanted:
            wanted = " or ".join(self._wanted)
        raise InputError(
            f"{self._path} holds no image: {wanted} are looked for in its samples, {found}. "
            "Correct `path`, or `image_column`, the extension of the images"
        )

    def _name_of(self, file: str) -> str:
        """Return the name of a shard in ids: its path below the folder that the source names.

        It does not depend on the other shards, so that ids stay when shards are added.
        """
        shown = without_credentials(file)
        if shown.startswith(("http://", "https://")):
            shown, _, _ = shown.partition("?")
        return shown.removeprefix(without_credentials(self._folder)).lstrip("/")

    # --- finding the shards

    def _files_at(self, pattern: str) -> list[SourceFile]:
        """Return the shards at a path or pattern; none is opened.

        Raises:
            InputError: there is none.
        """
        if is_local(self._fs):
            files = list(self._local_files(pattern))
        else:
            files = list(self._remote_files(pattern))
        if not files:
            shown = without_credentials(pattern)
            fix = "correct `path` of the source"
            if pattern == self._root and self._is_folder(pattern):
                hint = hint_of_folders(self._path, pattern, self._fs, SHARD_EXTENSIONS)
                fix = hint or fix
            raise InputError(f"there is no tar archive at {shown}: {fix}")
        return files

    def _is_folder(self, path: str) -> bool:
        if is_local(self._fs):
            return os.path.isdir(path)
        extensions: tuple[str, ...] = SHARD_EXTENSIONS
        address, _, _ = path.partition("?")
        suffix = PurePosixPath(address).suffix.lower()
        # A range stands for shards of any extension.
        if suffix and path != self._root:
            extensions += (suffix,)
        return is_remote_folder(self._fs, path, extensions)

    def _local_files(self, pattern: str) -> Iterator[SourceFile]:
        is_folder = os.path.isdir(pattern)
        if is_folder:
            matches = [entry.path for entry in os.scandir(pattern)]
        else:
            matches = local_matches(pattern)
        for match in matches:
            if not os.path.lexists(match) or os.path.isdir(match):
                continue
            if is_folder and self._is_no_shard(match):
                continue
            version, fault = file_state(match)
            # A large file is no fault here: it is read in parts.
            if fault not in ("", Reason.TOO_LARGE):
                raise InputError(f"{match}: {fault}. Fix or remove it")
            yield SourceFile(match, version, "")

    def _remote_files(self, pattern: str) -> Iterator[SourceFile]:
        is_folder = self._is_folder(pattern)
        if is_folder:
            pattern = _named_folder(pattern, is_folder) + "*"
        found: dict[str, dict[str, Any]] = {}
        is_pattern = has_wildcard(pattern) and not self._fs.exists(pattern)
        if is_pattern:
            found = self._fs.glob(pattern, detail=True)
        elif self._fs.exists(pattern):
            found = {pattern: self._fs.info(pattern)}
        version_of_archive = archive_version(self._fs)
        for file, about in found.items():
            if about.get("type") == "directory":
                continue
            if is_pattern and is_hidden(file, pattern):
                self._passed_over["hidden file"] += 1
                continue
            if is_folder and self._is_no_shard(file):
                continue
            marked = with_marks(self._fs, file, about)
            if not has_mark(marked):
                self._n_unmarked += 1
            version = version_of_archive + remote_version(marked)
            yield SourceFile(file, version, "")

    def _is_no_shard(self, file: str) -> bool:
        """Return whether a file in a folder is left out; those that are hidden are counted."""
        name = PurePosixPath(file).name
        if name.startswith("."):
            self._passed_over["hidden file"] += 1
            return True
        return not name.lower().endswith(SHARD_EXTENSIONS)


def _images(stream: ForwardStream, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
    """Yield the images in some rows, which lie behind each other in the archive."""
    previous = -1
    image: bytes | Unusable = b""
    places = zip(rows["id"].tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
    for image_id, offset, size in places:
        # Two links to one file have its position.
        if offset != previous:
            member = Member(image_id, offset, size, None, is_sparse=False)
            try:
                image = stream.content_of(member)
            except MemoryError:
                image = Unusable(Reason.TOO_LARGE)
        previous = offset
        yield image


def _named_folder(path: str, is_folder: bool) -> str:
    """Return the folder of a path or pattern that all files have in common, with a slash."""
    if is_folder:
        folder = path.rstrip("/")
        # The root of an archive is "".
        return f"{folder}/" if path else ""
    beginning = _PATTERN.split(path)[0]
    folder, slash, _ = beginning.rpartition("/")
    return folder + slash
