"""Image files that a list names, with their labels."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable, map_in_order
from pu_kd_pipeline.images.label_names import listed
from pu_kd_pipeline.images.sources.archives import (
    archive_version,
    reads_one_file_at_a_time,
    why_not_shared,
)
from pu_kd_pipeline.images.sources.base import CONFLICTING_LABELS, PASSED_OVER, listing_table
from pu_kd_pipeline.images.sources.files import (
    MAX_FILE_BYTES,
    READ_THREADS,
    SourceFile,
    check_version,
    file_state,
    file_system,
    has_mark,
    is_local,
    is_remote_folder,
    joined,
    read_file,
    remote_info,
    remote_version,
    state_of,
    unmarked_warning,
    with_marks,
)
from pu_kd_pipeline.images.sources.list_tables import ROLES, ListTable, read_list
from pu_kd_pipeline.masking import visible_name, without_credentials

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


logger = logging.getLogger(__name__)

_MAX_NAMED = 5  # missing files that a message lists
_LIST_EXTENSIONS = (".csv", ".tsv", ".txt", ".parquet")
# So many files are asked for one by one. A listing of `root` may have a million others.
_FEW_FILES = 100


class ListSource:
    """Image files whose paths are in a CSV, TSV or Parquet file, which may have labels and ids.

    The list and the files are local or at an fsspec URL. Paths start at the folder of the list, or
    at `root`. Without ids an image is called by its path. Files that are missing are listed with a
    fault; a file that is listed twice with the same label is one image, and one with different
    labels has a fault.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._source = source
        self._path = str(source.path)
        self._fs, self._file = file_system(self._path)
        self._root_fs = self._fs
        self._root = posixpath.dirname(self._file)
        if source.root is not None:
            self._root_fs, self._root = file_system(source.root)
        elif is_local(self._fs):
            self._root = os.path.dirname(self._file)
        self._is_local = is_local(self._root_fs)
        self._is_copy = False  # which another process reads, maybe on another machine
        self._n_unmarked = 0  # remote files whose changes cannot be seen in full
        # Before it is read: a later change then gives the list another version.
        self._state_of_list = self._list_file()
        self._table = self._read_list()
        if self._is_local and not os.path.isdir(self._root):
            raise InputError(f"there is no folder {source.root}: correct `root` of the source")

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return the state of the list and of the files in it; only the list is opened."""
        return state_of(lambda: ListSource(source, seed=0)._all_files())

    def listing(self) -> pd.DataFrame:
        table = self._table
        rows, faults, n_repeated = self._distinct_rows(table)
        if not rows:
            raise InputError(f"{self._path} lists no image: it has no rows below its header")
        paths = [self._plain_path(table.paths[row]) for row in rows]
        files = self._states(paths)
        self._check_missing(files)

        ids: list[str] = []
        versions: list[str] = []
        for row, file in zip(rows, files, strict=True):
            image_id = None if table.ids is None else table.ids[row]
            ids.append(file.path if image_id is None else str(image_id))
            versions.append(file.version)
            fault = file.fault or faults.get(row)
            faults[row] = fault or None
        listing = listing_table(
            ids,
            _taken(table.labels, rows),
            _taken(table.label_names, rows),
            versions,
            [faults[row] for row in rows],
            path=paths,
        )
        if n_repeated:
            listing.attrs[PASSED_OVER] = {"row of the list that repeats another one": n_repeated}
        if self._n_unmarked:
            logger.warning(unmarked_warning(self._path, self._n_unmarked, len(files)))
        return listing

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        files = list(zip(rows["path"], rows["version"], strict=True))
        return map_in_order(self._fetch, files, self._n_threads())

    def why_not_shared(self, n_images: int) -> str | None:
        return why_not_shared(self._root_fs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind the list, and the file system that it is on."""
        left_behind = ("_table", "_fs")
        kept = {name: value for name, value in self.__dict__.items() if name not in left_behind}
        return {**kept, "_is_copy": True}

    def _n_threads(self) -> int:
        """Return how many threads may read at a time."""
        if reads_one_file_at_a_time(self._root_fs):
            return 1
        return READ_THREADS

    def _fetch(self, file: tuple[str, str]) -> bytes | Unusable:
        """Return the content of a file, by its path and version."""
        path, version = file
        location = self._location(path)
        if self._is_local:
            # Where it was listed, a file that changed meanwhile is read again by the next run.
            if self._is_copy:
                check_version(location, version)
            folder = self._root
            if os.path.isabs(path):
                folder = os.path.dirname(path)
            return read_file(location, folder)
        try:
            return bytes(self._root_fs.cat_file(location))
        except MemoryError:
            return Unusable(Reason.TOO_LARGE)
        except Exception:  # each kind of remote file system has errors of its own
            return Unusable(Reason.NOT_OPENED)

    # --- the list

    def _all_files(self) -> list[SourceFile]:
        paths = {self._plain_path(path): None for path in self._table.paths}
        return [self._state_of_list, *self._states(list(paths))]

    def _list_file(self) -> SourceFile:
        """Return the list with its version.

        Raises:
            InputError: there is no such file.
        """
        if is_local(self._fs):
            is_folder = os.path.isdir(self._file)
        else:
            is_folder = is_remote_folder(self._fs, self._file, _LIST_EXTENSIONS)
        if is_folder:
            raise InputError(
                f"{self._path} is a folder, and a source of type 'list' reads one file: name it"
            )
        if not self._fs.exists(self._file):
            raise InputError(f"there is no {self._path}: correct `path` of the source")
        if is_local(self._fs) and not os.path.isfile(self._file):
            raise InputError(f"{self._path} is neither a file nor a folder: correct `path`")
        if is_local(self._fs):
            version, fault = file_state(self._file)
        else:
            version = archive_version(self._fs) + remote_version(self._fs.info(self._file))
            fault = ""
        return SourceFile(self._file, version, fault)

    def _read_list(self) -> ListTable:
        """Return the table in the list.

        Raises:
            InputError: it is no list, or lacks what the source asks for.
        """
        source = self._source
        with self._fs.open(self._file, "rb") as opened:
            content = opened.read()
        name = without_credentials(self._path)
        columns = {}
        for role in ROLES:
            column = getattr(source, f"{role}_column")
            if column is not None:
                columns[role] = column
        table = read_list(content, name, columns, source.separator, source.encoding)
        if source.labels != "ignore" and not table.has_labels:
            raise InputError(
                f"{name} has no column 'label' or 'label_name', and labels is "
                f"{source.labels!r}: set `label_column` on the source, or "
                "`labels: ignore`"
            )
        urls = [path for path in table.paths if "://" in path]
        if urls:
            raise InputError(
                f"{name} lists URLs, such as {without_credentials(urls[0])!r}: list paths below "
                "one folder or URL, and set it as `root` of the source"
            )
        return table

    def _distinct_rows(self, table: ListTable) -> tuple[list[int], dict[int, str | None], int]:
        """Return the rows to use, the faults of some, and the number of repeated rows.

        A row without a label contradicts none, and gives way to one that has a label.
        """
        row_of: dict[str, int] = {}
        faults: dict[int, str | None] = {}
        n_repeated = 0
        for row, path in enumerate(table.paths):
            plain = self._plain_path(path)
            first = row_of.setdefault(plain, row)
            if first == row:
                continue
            n_repeated += 1
            label = _label_of(table, row)
            first_label = _label_of(table, first)
            if first_label is None:
                row_of[plain] = row
            elif label not in (None, first_label) and self._source.labels != "ignore":
                faults[first] = f"{CONFLICTING_LABELS}: {first_label} and {label}"
        if faults:
            example = next(iter(faults))
            logger.warning(
                "%s: %s files are listed with different labels, and are left out, such as %r (%s)",
                without_credentials(self._path),
                f"{len(faults):,}",
                visible_name(table.paths[example]),
                faults[example],
            )
        return list(row_of.values()), faults, n_repeated

    # --- the files in it

    def _plain_path(self, path: str) -> str:
        """Return a path without `.` and repeated slashes; below `root` if it starts with that."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        plain = "/".join(parts)
        if not path.startswith("/"):
            return plain
        root = self._root.strip("/")
        if plain.startswith(f"{root}/"):
            return plain.removeprefix(f"{root}/")
        return f"/{plain}"

    def _location(self, path: str) -> str:
        if self._is_local:
            return os.path.join(self._root, path)
        return joined(self._root, path.lstrip("/"))

    def _states(self, paths: Sequence[str]) -> list[SourceFile]:
        if self._is_local:
            return [self._local_state(path) for path in paths]
        return self._remote_states(paths)

    def _local_state(self, path: str) -> SourceFile:
        location = self._location(path)
        version, fault = file_state(location)
        if fault == Reason.NOT_OPENED and not os.path.lexists(location):
            fault = Reason.MISSING
        return SourceFile(path, version, fault)

    def _remote_states(self, paths: Sequence[str]) -> list[SourceFile]:
        listed_below_root = self._listing_of_root(len(paths))
        self._n_unmarked = 0
        version_of_archive = archive_version(self._root_fs)

        def about_file(path: str) -> dict[str, Any] | None:
            location = self._root_fs._strip_protocol(self._location(path))
            return self._about(location, listed_below_root.get(location))

        all_about = map_in_order(about_file, paths, self._n_threads())
        states = []
        for path, about in zip(paths, all_about, strict=True):
            if about is None:
                states.append(SourceFile(path, "", Reason.MISSING))
                continue
            if not has_mark(about):
                self._n_unmarked += 1
            is_large = (about.get("size") or 0) > MAX_FILE_BYTES  # some do not know the size
            fault = Reason.TOO_LARGE if is_large else ""
            version = version_of_archive + remote_version(about)
            states.append(SourceFile(path, version, fault))
        return states

    def _listing_of_root(self, n_files: int) -> dict[str, dict[str, Any]]:
        """Return what the file system lists below `root`; empty where it does not list folders.

        It is one request for a thousand files.
        """
        if n_files <= _FEW_FILES:
            return {}
        try:
            found: dict[str, dict[str, Any]] = self._root_fs.find(self._root, detail=True)
        except Exception:  # of any kind: many servers give files, and refuse to list them
            return {}
        return found

    def _about(
        self, location: str, about_in_listing: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Return what the file system knows of a file; None if there is none."""
        if about_in_listing is not None:
            return with_marks(self._root_fs, location, about_in_listing)
        about = remote_info(self._root_fs, location)
        if about is None or about.get("type") == "directory":
            return None
        return about

    def _check_missing(self, files: Sequence[SourceFile]) -> None:
        """Warn of files that are missing.

        Raises:
            InputError: all are.
        """
        missing = [file.path for file in files if file.fault == Reason.MISSING]
        if not missing:
            return
        named = listed([repr(path) for path in missing], _MAX_NAMED)
        problem = (
            f"{without_credentials(self._path)}: {len(missing):,} of its {len(files):,} files are "
            f"not in {without_credentials(self._root)}: {named}"
        )
        if "\\" in missing[0]:
            problem += " (paths are written with slashes, not backslashes)"
        if len(missing) == len(files):
            raise InputError(f"{problem}. Correct the paths, or set `root` to where they start")
        logger.warning("%s: they are left out, and counted as %r", problem, str(Reason.MISSING))


def _label_of(table: ListTable, row: int) -> Any:
    """Return the label of a row: its name without spaces around it, or its number, or None."""
    if table.label_names is not None and table.label_names[row] is not None:
        name = str(table.label_names[row]).strip()
        if name:
            return name
    if table.labels is not None:
        return table.labels[row]
    return None


def _taken(column: list[Any] | None, rows: Sequence[int]) -> list[Any] | None:
    if column is None:
        return None
    return [column[row] for row in rows]
