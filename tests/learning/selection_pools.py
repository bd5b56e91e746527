"""Pools, options and proxies for the tests of selection rules and criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pu_kd_pipeline.learning.class_prior.estimators import share_at_least
from pu_kd_pipeline.learning.retrieval import Neighbors
from pu_kd_pipeline.learning.selection import RULES, PoolScores, Selection
from pu_kd_pipeline.learning.selection_criteria import CRITERIA, SelectionOptions

# Each rule once, and those that use a criterion once per criterion.
CASES: list[tuple[str, str]] = []
for name, record in RULES.items():
    for criterion in CRITERIA if record.uses_criterion else ["sign"]:
        CASES.append((name, criterion))


def select(rule: str, pool: PoolScores, options: SelectionOptions) -> Selection:
    if options.neighbors is None:
        options = replace(options, neighbors=lambda _: some_neighbors(len(pool)))
    return RULES[rule].select(pool, options)


def some_neighbors(n: int, n_queries: int = 2, n_clusters: int = 3) -> Neighbors:
    """Return neighbors of labeled images in a pool of n, all on one line."""
    rows = np.tile(np.arange(n), (n_queries, 1))
    vectors = {row: np.eye(1, n, row, dtype=np.float32)[0] for row in range(n)}
    names = np.array([f"labeled/{number}" for number in range(n_queries)])
    return Neighbors(names, rows, vectors, np.arange(n) % n_clusters, duplicate_cosine=0.9)


def make_pool(
    pu_score: list[float] | np.ndarray, relevant: np.ndarray | None = None, seed: int = 0
) -> PoolScores:
    n = len(pu_score)
    rng = np.random.default_rng(seed)
    classes = rng.integers(10, size=n)
    confidence = rng.random(n, dtype=np.float32)
    return PoolScores(
        pu_score=np.asarray(pu_score, dtype=np.float32),
        teacher_class=classes,
        teacher_confidence=confidence,
        teacher_log_odds=log_odds(confidence),
        tie_break=rng.permutation(n).astype(np.uint64),
        relevant=relevant,
    )


def log_odds(confidence: np.ndarray) -> np.ndarray:
    """Return log p - log(1 - p) of probabilities below 1."""
    exact = confidence.astype(np.float64)
    return np.log(exact) - np.log1p(-exact)


def make_options(
    criterion: str = "sign", budget: int | None = None, seed: int = 0, **others: object
) -> SelectionOptions:
    given: dict[str, object] = {
        "class_prior": 0.5,
        "target_precision": 0.4,
        "held_out_ranks": np.linspace(0, 0.6, 20),
        "rng": np.random.default_rng(seed),
    }
    return SelectionOptions(criterion=criterion, budget=budget, **{**given, **others})  # type: ignore[arg-type]


def simulated(
    class_prior: float = 0.2, n: int = 20_000, seed: int = 0
) -> tuple[PoolScores, np.ndarray]:
    """A pool of N(2, 1) positives among N(0, 1), and the ranks of 2,000 held-out positives."""
    rng = np.random.default_rng(seed)
    relevant = rng.random(n) < class_prior
    scores = (rng.normal(size=n) + 2.0 * relevant).astype(np.float32)
    return make_pool(scores, relevant), share_at_least(rng.normal(2, 1, 2_000), scores)


def flat(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """A proxy that diverges from the teacher by the same everywhere."""
    return lambda _: np.ones(n, dtype=np.float32)
