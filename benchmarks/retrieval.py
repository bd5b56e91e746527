"""Target 9: the images nearest to the labeled ones in a pool of 10 million descriptors.

The exact search of the rule `retrieved` reads the pool once, block by block. Next to it are two
libraries that answer from an index, which has to be built first: faiss (an inverted file with
vectors in float16) and usearch (a graph). The vectors are synthetic: clusters of different sizes in
64 dimensions, stored as float16 in a memory-mapped file, as a pool's features are.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Measurement, cpu_seconds
from pu_kd_pipeline.learning.retrieval import NearestImages, unit_vectors

N_POOL = 10_000_000
N_GRAPH = 500_000  # vectors of the graph: of the whole pool, building it would take longest of all
N_DIMENSIONS = 64
N_CLUSTERS = 2_000
N_QUERIES = 160  # as many labeled images as conf/caltech has
N_NEAREST = 100
BLOCK = 100_000
N_LISTS = 4_096
N_TRAINING = 262_144  # vectors that the lists of the inverted file are fitted to
N_PROBED = 32  # lists that a query looks into


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 9."""
    del images
    folder = work / "retrieval"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pool.f16"
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(N_CLUSTERS, N_DIMENSIONS)).astype(np.float32)
    _write_pool(file, centers, rng)
    pool = np.memmap(file, dtype=np.float16, mode="r", shape=(N_POOL, N_DIMENSIONS))
    queries = _drawn(centers, N_QUERIES, rng)
    try:
        yield from _rows(pool, queries, folder)
    finally:
        file.unlink()


def _rows(pool: np.ndarray, queries: np.ndarray, folder: Path) -> Iterator[Measurement]:
    found: dict[str, np.ndarray] = {}

    def exact(n: int) -> None:
        found[f"exact {n}"] = exact_rows(pool[:n], queries)

    seconds = cpu_seconds(lambda: exact(len(pool)))
    yield _row(f"exact search, block by block, of {len(pool):,} vectors", seconds, n=len(pool))
    if find_spec("faiss") is None:
        yield _missing("faiss")
    else:
        yield from _inverted_file_rows(pool, queries, folder, found[f"exact {len(pool)}"])
    if find_spec("usearch") is None:
        yield _missing("usearch")
        return
    n_graph = min(N_GRAPH, len(pool))
    exact(n_graph)
    yield from _graph_rows(pool[:n_graph], queries, folder, found[f"exact {n_graph}"])


def _row(what: str, seconds: float, note: str = "", n: int | None = None) -> Measurement:
    about = f"the {N_NEAREST} nearest of {N_QUERIES} labeled images: {what}"
    throughput = n / seconds if n else None
    return Measurement(
        "9", about, seconds, None, None, "s", "<=", None, note=note, throughput=throughput
    )


def _missing(package: str) -> Measurement:
    note = f"{package} is not installed: pip install -e '.[bench]'"
    return Measurement(
        "9", f"search in an index of {package}", None, None, None, "s", "<=", None, note=note
    )


# --- the pool -------------------------------------------------------------------------------------


def _drawn(centers: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return (n, d) float32 unit vectors around the centers; the first ones have most of them."""
    numbers = (len(centers) * rng.random(n) ** 2).astype(int)
    noise = rng.standard_normal((n, centers.shape[1]), dtype=np.float32)
    return unit_vectors(centers[numbers] + noise)


def _write_pool(file: Path, centers: np.ndarray, rng: np.random.Generator) -> None:
    with open(file, "wb") as pool:
        for start in range(0, N_POOL, BLOCK):
            n = min(BLOCK, N_POOL - start)
            _drawn(centers, n, rng).astype(np.float16).tofile(pool)


def _blocks(pool: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield where each block starts, and its vectors as float32 unit vectors."""
    for start in range(0, len(pool), BLOCK):
        yield start, unit_vectors(pool[start : start + BLOCK])


# --- three searches -------------------------------------------------------------------------------


def exact_rows(pool: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the (q, k) nearest rows as the rule `retrieved` finds them."""
    nearest = NearestImages(queries, N_NEAREST, duplicate_cosine=2.0)
    for start, vectors in _blocks(pool):
        nearest.add(vectors, np.arange(start, start + len(vectors)))
    return nearest.rows


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of the exact nearest rows that were found."""
    pairs = zip(found, exact, strict=True)
    n_found = [len(np.intersect1d(own, others)) for own, others in pairs]
    return sum(n_found) / exact.size


def _inverted_file_rows(
    pool: np.ndarray, queries: np.ndarray, folder: Path, exact: np.ndarray
) -> Iterator[Measurement]:
    import faiss

    faiss.omp_set_num_threads(1)
    file = folder / "inverted.faiss"
    n_lists = min(N_LISTS, len(pool) // 40)

    def build() -> None:
        quantizer = faiss.IndexFlatIP(N_DIMENSIONS)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer,
            N_DIMENSIONS,
            n_lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
        )
        # Evenly over the pool.
        step = max(1, len(pool) // N_TRAINING)
        index.train(unit_vectors(pool[::step]))
        for _, vectors in _blocks(pool):
            index.add(vectors)
        faiss.write_index(index, str(file))

    built = cpu_seconds(build)
    index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    index.nprobe = N_PROBED
    rows: list[np.ndarray] = []
    asked = cpu_seconds(lambda: rows.append(index.search(queries, N_NEAREST)[1]))
    share = recall(rows[0], exact)
    yield from _index_rows("faiss, an inverted file", built, asked, share, file, len(pool))


def _graph_rows(
    pool: np.ndarray, queries: np.ndarray, folder: Path, exact: np.ndarray
) -> Iterator[Measurement]:
    from usearch.index import Index

    file = folder / "graph.usearch"

    def build() -> None:
        index = Index(ndim=N_DIMENSIONS, metric="ip", dtype="f16")
        for start, vectors in _blocks(pool):
            index.add(np.arange(start, start + len(vectors)), vectors, threads=1)
        index.save(str(file))

    built = cpu_seconds(build)
    index: Any = Index.restore(str(file), view=True)
    rows: list[np.ndarray] = []

    def ask() -> None:
        rows.append(index.search(queries, N_NEAREST, threads=1).keys)

    asked = cpu_seconds(ask)
    share = recall(rows[0], exact)
    yield from _index_rows("usearch, a graph", built, asked, share, file, len(pool))


def _index_rows(
    name: str, built: float, asked: float, share: float, file: Path, n: int
) -> Iterator[Measurement]:
    n_mb = file.stat().st_size / 1e6
    yield _row(f"building the index of {n:,} vectors ({name})", built, f"{n_mb:,.0f} MB on disk", n)
    note = f"recall {100 * share:.1f} %; the index is memory-mapped"
    yield _row(f"asking the index of {n:,} vectors ({name})", asked, note)
    file.unlink()
