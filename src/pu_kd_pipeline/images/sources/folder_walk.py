"""The visible files below a local folder, with or without what links to folders lead to."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator


class FolderWalk:
    """Walks through a local folder and remembers what it left out.

    With `follow_links`, each folder is read once per class folder, whichever links lead to it.
    Links in a circle end, and a folder that two class folders link to is read for both. Real
    folders come before links, so that a new link does not rename the images of real ones.

    Attributes:
        n_hidden_folders: folders whose names begin with a dot.
        n_repeated_links: links to folders that are read already.
        unfollowed: links to folders that are not followed.
        unreadable: errors of folders that cannot be listed.
    """

    def __init__(self, root: str, follow_links: bool) -> None:
        self._root = root
        self._follow_links = follow_links
        self.n_hidden_folders = 0
        self.n_repeated_links = 0
        self.unfollowed: list[str] = []
        self.unreadable: list[OSError] = []
        # Class folder -> real paths of the folders that are read for it
        self._read: defaultdict[str, set[str]] = defaultdict(set)
        self._real_root = os.path.realpath(root)

    def files(self) -> Iterator[str]:
        """Yield the paths of the visible files; the order is that of the file system."""
        links: list[str] = []
        yield from self._files_below(self._root, links)
        if not self._follow_links:
            self.unfollowed = sorted(links)
            return
        while links:
            found: list[str] = []
            for link in sorted(links):
                yield from self._files_below(link, found)
            links = found

    def _files_below(self, top: str, links: list[str]) -> Iterator[str]:
        """Yield the files below a folder, and add the links to folders to the list."""
        # os.walk follows no links, and without `onerror` it would skip closed folders in silence.
        for folder, subfolders, names in os.walk(top, onerror=self.unreadable.append):
            if self._follow_links and not self._is_new(folder):
                self.n_repeated_links += 1
                subfolders.clear()
                continue
            visible = [name for name in subfolders if not name.startswith(".")]
            self.n_hidden_folders += len(subfolders) - len(visible)
            for name in visible:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    links.append(path)
            # Changed in place, which is how os.walk learns where not to go.
            subfolders[:] = visible
            for name in names:
                yield os.path.join(folder, name)

    def _is_new(self, folder: str) -> bool:
        """Return whether a folder is not yet read for its class, and note that it is now."""
        if folder == self._root:
            return True
        real_folder = os.path.realpath(folder)
        relative = os.path.relpath(folder, self._root)
        class_folder, _, _ = relative.partition(os.sep)
        read = self._read[class_folder]
        if real_folder in read or real_folder == self._real_root:
            return False
        read.add(real_folder)
        return True
