"""Images in folders."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable, map_in_order
from pu_kd_pipeline.images.file_kinds import (
    EXTENSIONS,
    N_FIRST_BYTES,
    has_image_name,
    has_no_extension,
    is_image_content,
)
from pu_kd_pipeline.images.sources.archives import (
    archive_version,
    reads_one_file_at_a_time,
    why_not_shared,
)
from pu_kd_pipeline.images.sources.base import PASSED_OVER, listing_table
from pu_kd_pipeline.images.sources.class_patterns import labels_in_paths
from pu_kd_pipeline.images.sources.files import (
    MAX_FILE_BYTES,
    READ_THREADS,
    SourceFile,
    check_folder_exists,
    check_version,
    file_state,
    file_system,
    has_mark,
    is_hidden,
    is_local,
    is_printable,
    joined,
    printable,
    remote_version,
    state_of,
    unmarked_warning,
    with_marks,
)
from pu_kd_pipeline.images.sources.folder_walk import FolderWalk
from pu_kd_pipeline.images.sources.links import HOW_TO_FOLLOW, check_links, is_broken_link
from pu_kd_pipeline.masking import visible_name

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource


logger = logging.getLogger(__name__)

NO_EXTENSION = "no extension"  # why a file was passed over
_NAMELESS_LINK = "link without extension to a file outside of the folder"
_MAX_REASONS_SHOWN = 5


class FolderSource:
    """Image files below a folder, local or at any fsspec URL.

    The first folder in an image's path is its class, or what `class_pattern` finds in the path.
    Images are known by their extension, and files without one by their content. Hidden files are
    left out. Links to folders, and to files outside of the folder, are listed with a fault unless
    `follow_links` is set.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._path = str(source.path)
        self._fs, self._root = file_system(self._path)
        self._is_local = is_local(self._fs)
        self._follow_links = source.follow_links
        self._class_pattern = source.class_pattern
        self._labels: dict[str, str | None] = {}  # path -> what the pattern finds in it
        self._unmatched: list[str] = []
        self._n_unmarked = 0  # remote files whose changes cannot be seen in full
        self._passed_over: Counter[str] = Counter()
        self._is_copy = False  # which another process reads, maybe on another machine

    @staticmethod
    def state(source: ImageSource) -> str:
        return state_of(lambda: FolderSource(source, seed=0)._files())

    def listing(self) -> pd.DataFrame:
        files = self._without_other_contents(self._files())
        self._warn_of_unmatched(len(files))
        if not files:
            extensions = ", ".join(EXTENSIONS)
            raise InputError(
                f"{self._path} holds no image: files ending in {extensions} are looked for, and "
                f"images without an extension.{self._passed_over_text()}"
            )
        check_links(files, self._path)

        paths: list[str] = []
        classes: list[str | None] = []
        versions: list[str] = []
        faults: list[str | None] = []
        for file in files:
            paths.append(file.path)
            classes.append(self._class_of(file.path))
            versions.append(file.version)
            faults.append(file.fault or None)

        self._warn_of_nameless_links()
        self._warn_of_unmarked(len(files))
        table = listing_table(
            paths, label_names=classes, versions=versions, faults=faults, path=paths
        )
        table.attrs[PASSED_OVER] = dict(self._passed_over)
        return table

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        files = list(zip(rows["path"], rows["version"], strict=True))
        return map_in_order(self._fetch, files, self._n_threads())

    def why_not_shared(self, n_images: int) -> str | None:
        return why_not_shared(self._fs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is only known of the listing."""
        return {**self.__dict__, "_labels": {}, "_unmatched": [], "_is_copy": True}

    def _n_threads(self) -> int:
        """Return how many threads may read at a time."""
        if reads_one_file_at_a_time(self._fs):
            return 1
        return READ_THREADS

    def _fetch(self, file: tuple[str, str]) -> bytes | Unusable:
        """Return the content of a file, by its path and version."""
        path, version = file
        # Where it was listed, a file that changed meanwhile is read again by the next run.
        if self._is_local and self._is_copy:
            check_version(os.path.join(self._root, path), version)
        try:
            if self._is_local:
                return Path(self._root, path).read_bytes()
            return bytes(self._fs.cat_file(joined(self._root, path)))
        except MemoryError:
            return Unusable(Reason.TOO_LARGE)
        except Exception as exc:  # each kind of remote file system has errors of its own
            if self._is_local and not isinstance(exc, OSError):
                raise
            # A local folder that is gone as a whole ends the run; a single file is set aside.
            if self._is_local:
                check_folder_exists(self._root, self._path)
            return Unusable(Reason.NOT_OPENED)

    def _files(self) -> list[SourceFile]:
        """Return every image of the folder, in a stable order; none is opened.

        Files without an extension are among them, whatever they are.

        Raises:
            InputError: there is no such folder.
        """
        if not self._fs.isdir(self._root):
            raise InputError(f"there is no folder {self._path}: correct `path` of the source")
        self._passed_over.clear()
        if self._is_local:
            found = _local_files(self._root, self._follow_links, self._passed_over)
        else:
            found = self._remote_files()
        files = sorted(found)
        if self._class_pattern is None:
            return files
        return self._matched(files, self._class_pattern)

    def _matched(self, files: list[SourceFile], pattern: str) -> list[SourceFile]:
        """Return the files that the pattern matches, and those that cannot be used anyway."""
        paths = [file.path for file in files]
        self._labels = labels_in_paths(pattern, paths, self._path)
        matched = []
        self._unmatched = []
        for file in files:
            if file.path in self._labels or file.fault:
                matched.append(file)
            else:
                self._unmatched.append(file.path)
        if self._unmatched:
            self._passed_over["name that class_pattern does not match"] = len(self._unmatched)
        return matched

    def _warn_of_unmatched(self, n_files: int) -> None:
        """Warn of images that the pattern leaves out.

        Raises:
            InputError: it leaves out all.
        """
        if not self._unmatched:
            return
        problem = (
            f"{self._path}: class_pattern {self._class_pattern!r} does not match the paths of "
            f"{len(self._unmatched):,} images, such as {visible_name(self._unmatched[0])!r}"
        )
        if not n_files:
            raise InputError(f"{problem}, and matches none: correct it")
        logger.warning("%s: they are left out, and %s are read", problem, f"{n_files:,}")

    def _class_of(self, path: str) -> str | None:
        """Return the class that a path names: its first folder, or what the pattern finds."""
        if self._class_pattern is not None:
            return self._labels.get(path)
        # As paths in an archive of `tar cf x.tar .` begin
        folder, slash, _ = path.removeprefix("./").partition("/")
        if not slash:
            return None  # a file at the top of the source
        return folder

    def _remote_files(self) -> Iterator[SourceFile]:
        without_protocol = self._fs._strip_protocol(self._root)
        root = without_protocol.rstrip("/")
        found = self._fs.find(root, detail=True)
        candidates = []
        for path in found:
            relative = path.removeprefix(root).lstrip("/")
            if is_hidden(relative, "**"):
                self._passed_over["hidden file"] += 1
                continue
            name = PurePosixPath(relative).name
            if not _may_be_image(name):
                self._passed_over[_why_passed_over(name)] += 1
                continue
            candidates.append((path, relative))

        def about_file(candidate: tuple[str, str]) -> dict[str, Any]:
            path, _ = candidate
            return with_marks(self._fs, path, found[path])

        self._n_unmarked = 0
        version_of_archive = archive_version(self._fs)
        all_about = map_in_order(about_file, candidates, self._n_threads())
        for (_, relative), about in zip(candidates, all_about, strict=True):
            if not has_mark(about):
                self._n_unmarked += 1
            size_bytes = about.get("size") or 0  # some file systems do not know it
            fault = ""
            if size_bytes > MAX_FILE_BYTES:
                fault = Reason.TOO_LARGE
            if fault and has_no_extension(relative):
                self._passed_over[NO_EXTENSION] += 1
                continue
            version = version_of_archive + remote_version(about)
            yield SourceFile(relative, version, fault)

    def _without_other_contents(self, files: list[SourceFile]) -> list[SourceFile]:
        """Return the files without those that have no extension and are no images."""
        nameless = []
        for file in files:
            if not file.fault and has_no_extension(file.path):
                nameless.append(file.path)
        others = set()
        are_images = map_in_order(self._has_image_content, nameless, self._n_threads())
        for path, is_image in zip(nameless, are_images, strict=True):
            if not is_image:
                others.add(path)
                self._passed_over[NO_EXTENSION] += 1
        return [file for file in files if file.path not in others]

    def _has_image_content(self, path: str) -> bool:
        try:
            if self._is_local:
                with open(os.path.join(self._root, path), "rb") as file:
                    return is_image_content(file.read(N_FIRST_BYTES))
            location = joined(self._root, path)
            first_bytes = self._fs.cat_file(location, start=0, end=N_FIRST_BYTES)
        except Exception:  # of any kind; it is set aside with its reason when it is read
            return True
        return is_image_content(bytes(first_bytes))

    def _passed_over_text(self) -> str:
        """Return a sentence on the most common of the other files; empty if there are none."""
        if not self._passed_over:
            return ""
        counts = self._passed_over.most_common(_MAX_REASONS_SHOWN)
        texts = [f"{reason} ({n:,})" for reason, n in counts]
        text = f" Passed over: {', '.join(texts)}"
        if self._passed_over[_NAMELESS_LINK]:
            text += f". As for the links, {HOW_TO_FOLLOW}"
        return text

    def _warn_of_nameless_links(self) -> None:
        """Warn of links that may lead to images: without an extension, only content would tell."""
        n_links = self._passed_over[_NAMELESS_LINK]
        if n_links:
            logger.warning(
                "%s: %s links without an extension lead out of it and are not followed. If they "
                "are images, %s",
                self._path,
                f"{n_links:,}",
                HOW_TO_FOLLOW,
            )

    def _warn_of_unmarked(self, n_files: int) -> None:
        if self._n_unmarked:
            logger.warning(unmarked_warning(self._path, self._n_unmarked, n_files))


def _local_files(root: str, follow_links: bool, passed_over: Counter[str]) -> Iterator[SourceFile]:
    """Yield the images below a local folder, and count the others by reason."""
    real_root = None if follow_links else os.path.realpath(root)
    walk = FolderWalk(root, follow_links)
    for path in walk.files():
        name = os.path.basename(path)
        is_nameless_link = has_no_extension(name) and is_broken_link(path)
        if is_nameless_link and not name.startswith("."):
            # It may be the place of a class folder whose disk is not mounted.
            relative = printable(os.path.relpath(path, root))
            yield SourceFile(relative, "", Reason.BROKEN_LINK)
            continue
        if not _may_be_image(name):
            passed_over[_why_passed_over(name)] += 1
            continue
        file = _local_file(path, root, real_root)
        # A pipe, or a link out of the folder: it is not opened to find an image.
        if file.fault and has_no_extension(name):
            is_link = file.fault == Reason.LINK
            passed_over[_NAMELESS_LINK if is_link else NO_EXTENSION] += 1
            continue
        yield file

    for path in walk.unfollowed:
        yield _local_file(path, root, real_root)
    for error in walk.unreadable:
        relative = os.path.relpath(error.filename, root)
        yield SourceFile(printable(relative), "", Reason.NOT_OPENED)
    if walk.n_hidden_folders:
        passed_over["hidden folder"] += walk.n_hidden_folders
    if walk.n_repeated_links:
        passed_over["link to a folder that is read already"] += walk.n_repeated_links


def _local_file(path: str, root: str, real_root: str | None) -> SourceFile:
    relative = path.removeprefix(root).lstrip(os.sep)
    if os.sep != "/":
        relative = relative.replace(os.sep, "/")
    if not is_printable(relative):
        name = printable(relative)
        return SourceFile(name, "", Reason.NAME)
    version, fault = file_state(path, real_root)
    return SourceFile(relative, version, fault)


def _why_passed_over(name: str) -> str:
    """Return the reason why a file is not read as an image, for the counts of the report."""
    if name.startswith("."):
        return "hidden file"
    if has_no_extension(name):
        return NO_EXTENSION
    extension = printable(os.path.splitext(name)[1].lower())
    return f"extension {extension}"


def _may_be_image(name: str) -> bool:
    is_hidden = name.startswith(".")
    return not is_hidden and (has_image_name(name) or has_no_extension(name))
