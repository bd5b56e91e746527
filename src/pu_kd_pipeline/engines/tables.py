"""The shards of a table as work for an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from pu_kd_pipeline.engines.current import shared_folder
from pu_kd_pipeline.engines.shards import LOCAL, map_shards
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.progress import track
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.folders import Folder
from pu_kd_pipeline.storage.sharded_table import write_shard


class TableWork(Protocol):
    """Makes any shard of one table; it can be pickled, and prepares itself when first called."""

    def __call__(self, argument: Any, /) -> pa.Table:
        """Return the table of a shard."""

    def facts(self) -> Mapping[str, str]:
        """Return what decides the content of the shards, as this process sees it."""


@dataclass(frozen=True, eq=False)
class ShardMakers(Mapping[str, Callable[[], pa.Table]]):
    """Name of a shard -> the function that makes it in this process, in the order of the table.

    `ShardedTable.write` lets the engine make those that are missing.

    Attributes:
        work: makes a shard.
        arguments: name -> what the work is called with.
        n_images: name -> images of the shard, for the progress; empty where shards have none.
        engine: who makes them.
    """

    work: TableWork
    arguments: Mapping[str, Any]
    n_images: Mapping[str, int] = field(default_factory=dict)
    engine: EngineParams = LOCAL

    @classmethod
    def of_images(
        cls, work: TableWork, shards: Iterable[tuple[str, Any, int]], suffix: str
    ) -> ShardMakers:
        """Return the makers of shards with images.

        Args:
            work: makes a shard.
            shards: name, argument of the work, and number of images of each.
            suffix: of all names.
        """
        arguments = {}
        n_images = {}
        for name, argument, n in shards:
            arguments[f"{name}-{suffix}"] = argument
            n_images[f"{name}-{suffix}"] = n
        return cls(work, arguments, n_images)

    def __getitem__(self, name: str) -> Callable[[], pa.Table]:
        return partial(self.work, self.arguments[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.arguments)

    def __len__(self) -> int:
        return len(self.arguments)

    def on(self, engine: EngineParams) -> ShardMakers:
        """Return the makers for another engine."""
        return replace(self, engine=engine)

    def make_missing(self, folder: Folder, names: Sequence[str]) -> None:
        """Make and write shards, each as a file of its own, and show the progress.

        Workers write to a remote folder themselves, through the cache of their machine.

        Raises:
            InputError: of the work, or a worker has other code, libraries or devices.
            UnavailableError: of the work or the engine, see `map_shards`.
            ShardError: any other error of the work.
        """
        target = folder.absolute() if isinstance(folder, Path) else folder
        writing = _ShardWriting(self.work, target)
        arguments = {name: self.arguments[name] for name in names}
        n_done = 0
        n_images = sum(self.n_images.get(name, 0) for name in names)

        def unit() -> str:
            if not n_images:
                return "shards"
            return f"shards, {n_done:,} of {n_images:,} images"

        try:
            with (
                work_folder(folder) as place,
                closing(map_shards(writing, arguments, self.engine, place)) as results,
            ):
                shown = track(results, name=folder.name, total=len(names), unit=unit)
                for name, _ in shown:
                    n_done += self.n_images.get(name, 0)
        finally:
            # Of workers that were lost while they wrote; the others have ended.
            if isinstance(folder, Path):
                remove_leftovers(folder)


@contextmanager
def work_folder(folder: Folder) -> Iterator[Path]:
    """Yield a folder for what workers are started with: a file that each of them reads.

    For a remote folder it is the folder of the node, which is in the data folder: all machines
    share that, and each may have a cache of its own. Outside of Kedro it is in the cache.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with shared_folder() as shared:
        if shared is not None:
            yield shared
            return
    with folder.room_for(0, "engine") as room:
        yield room


@dataclass(frozen=True)
class _ShardWriting:
    """Makes a shard and writes it under its final name, where it is whole or absent."""

    work: TableWork
    folder: Folder

    def __call__(self, name: str, argument: Any) -> int:
        """Return the number of rows."""
        table = self.work(argument)
        write_shard(table, self.folder, name)
        return int(table.num_rows)

    def facts(self) -> Mapping[str, str]:
        return self.work.facts()
