"""How close the class prior of an audit comes to the truth, and how often its interval holds it.

    python -m experiments.audit_coverage data/mnist_characters data/caltech data

Each folder is that of a run that extracted features of a pool whose truth is known. Audits of it
are simulated: images are drawn as `pool_audit` draws them, and answered by the truth. To see pools
with other class priors, related or unrelated images of the pool are left out at random. Prints a
table as Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pu_kd_pipeline.features.reading import read_confidence
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.stratified import (
    StratifiedCounts,
    allocate_answers,
    estimate_share,
    stratum_sizes,
)
from pu_kd_pipeline.pool_audit.drawing import strata_of
from pu_kd_pipeline.storage.sharded_table import ShardedTable

PRIORS = (0.02, 0.05, 0.12, 0.47)
COLUMNS = (
    *("pool", "images", "AUC of the ranks", "class prior"),
    *("RMSE", "RMSE, drawn evenly", "coverage", "width"),
)


def main() -> None:
    """Simulate audits of the pools of some runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="data folders of finished runs")
    parser.add_argument("--draws", type=int, default=1000, help="simulated audits of each pool")
    parser.add_argument("--answers", type=int, default=100, help="images of an audit")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + " --- |" * len(COLUMNS))
    for folder in arguments.folders:
        # Each pool starts with the same state, so that it has its rows whatever comes before.
        rng = np.random.default_rng(arguments.seed)
        for row in rows_of(folder, arguments.answers, arguments.draws, rng):
            print(row, flush=True)


def rows_of(folder: Path, n_answers: int, n_draws: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield a row of the table per class prior."""
    features = ShardedTable.open(folder / "04_feature" / "pool_features")
    images = ImageStore.open(folder / "02_intermediate" / "pool_images")
    ids, _, log_odds = read_confidence(features)
    relevant = images.index["relevant"]
    if relevant.isna().any():
        raise SystemExit(f"{folder}: the truth of the pool is not known (`labels: truth`)")
    truth = relevant.to_numpy(dtype=bool)[find_rows(images, ids, "pool_features")]
    auc = area_under_roc(log_odds, truth)
    for prior in (None, *PRIORS):
        rows = np.arange(len(ids))
        if prior is not None:
            rows = rows_with_prior(truth, prior, rng)
        strata = strata_of(ids[rows], log_odds[rows], seed=0)
        related = truth[rows]
        value, rmse, coverage, width = simulate(strata, related, n_answers, n_draws, rng)
        evenly = np.sqrt(value * (1 - value) / n_answers)
        yield (
            f"| {folder.name} | {len(rows):,} | {auc:.3f} | {value:.3f} | {rmse:.3f} "
            f"| {evenly:.3f} | {coverage:.1%} | {width:.3f} |"
        )


def rows_with_prior(truth: np.ndarray, prior: float, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of a pool of which images of one kind were left out at random.

    Args:
        truth: (N,) whether an image is related.
        prior: share of related images that is left.
        rng: decides which are left out.
    """
    related = np.flatnonzero(truth)
    others = np.flatnonzero(~truth)
    n_related = round(prior / (1 - prior) * len(others))
    if n_related <= len(related):
        related = rng.choice(related, n_related, replace=False)
    else:
        n_others = round((1 - prior) / prior * len(related))
        others = rng.choice(others, n_others, replace=False)
    return np.sort(np.concatenate([related, others]))


def simulate(
    strata: np.ndarray, related: np.ndarray, n_answers: int, n_draws: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return true class prior, RMSE of the estimates, coverage and mean width of the intervals."""
    sizes = stratum_sizes(len(strata))
    n = allocate_answers(n_answers, sizes)
    n_related = np.bincount(strata[related], minlength=len(sizes))
    prior = float(related.mean())
    errors = np.empty(n_draws)
    is_inside = np.empty(n_draws, dtype=bool)
    widths = np.empty(n_draws)
    for draw in range(n_draws):
        hits = rng.hypergeometric(n_related, sizes - n_related, n)
        counts = StratifiedCounts(sizes, n, hits.astype(np.int64), np.zeros_like(sizes))
        found = estimate_share(counts)
        errors[draw] = found.value - prior
        is_inside[draw] = found.lower <= prior <= found.upper
        widths[draw] = found.upper - found.lower
    rmse = float(np.sqrt((errors**2).mean()))
    return prior, rmse, float(is_inside.mean()), float(widths.mean())


if __name__ == "__main__":
    main()
