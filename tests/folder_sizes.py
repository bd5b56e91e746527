"""How large a folder becomes while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def sizes_of(folder: Path, every_s: float = 0.001) -> Iterator[list[int]]:
    """Yield a list that grows by the bytes below a folder, again and again."""
    sizes: list[int] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(every_s):
            # Folders and files come and go while they are counted: then not, this time.
            with suppress(OSError):
                files = [path for path in folder.rglob("*") if path.is_file()]
                sizes.append(sum(file.lstat().st_size for file in files))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        is_over.set()
        thread.join()
