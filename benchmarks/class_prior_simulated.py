"""Class prior estimates from simulated scores, where the truth is exact: errors per estimator.

    python -m benchmarks.class_prior_simulated --out FILE.md [--estimators dedpul,bbe]
        [--seeds 10] [--first-seed 0]

The scores of positives follow N(separation, 1), those of negatives N(0, 1). A pool has 5,000 of
them, of which exactly the class prior is positive. With 10 seeds there are 360 draws: three
separations, four class priors, three numbers of positives. At a separation of 1.5 (an AUC of 0.86)
the two overlap so much that every estimator errs upward; at 4 (0.998) they hardly do.

Estimates that are in the JSON lines file next to `--out` are not repeated. Delete it after a change
of an estimator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kept_runs import Result, add_run, read_runs
from pu_kd_pipeline.learning.class_prior.estimators import (
    best_bin_estimate,
    density_ratio_estimate,
)

SEPARATIONS = (1.5, 2.5, 4.0)
CLASS_PRIORS = (0.05, 0.12, 0.25, 0.5)
N_POSITIVES = (50, 200, 1000)
N_UNLABELED = 5_000
ESTIMATORS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, Any]]] = {
    "dedpul": density_ratio_estimate,
    "bbe": best_bin_estimate,
}


@dataclass(frozen=True)
class Setting:
    """One draw of positive and unlabeled scores."""

    separation: float
    class_prior: float
    n_positive: int
    seed: int


def draw_scores(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n_positive,) and (N_UNLABELED,) scores of a setting."""
    per_mille = round(1000 * setting.class_prior)
    tenths = round(10 * setting.separation)
    # One generator per setting, so that a run does not depend on those before it.
    rng = np.random.default_rng([setting.seed, setting.n_positive, per_mille, tenths])
    n_planted = round(setting.class_prior * N_UNLABELED)
    unlabeled = rng.normal(size=N_UNLABELED)
    unlabeled[:n_planted] += setting.separation
    positive = setting.separation + rng.normal(size=setting.n_positive)
    return positive, unlabeled


def settings(first_seed: int, n_seeds: int) -> Iterator[Setting]:
    """Yield all settings; seeds outermost, so that a stopped run leaves whole repetitions."""
    for seed in range(first_seed, first_seed + n_seeds):
        for separation in SEPARATIONS:
            for class_prior in CLASS_PRIORS:
                for n_positive in N_POSITIVES:
                    yield Setting(separation, class_prior, n_positive, seed)


def estimate(name: str, setting: Setting) -> Result:
    """Return the estimate of one estimator from one draw."""
    positive, unlabeled = draw_scores(setting)
    value, _ = ESTIMATORS[name](positive, unlabeled)
    return {"estimator": name, **asdict(setting), "value": value}


def format_table(results: list[Result]) -> str:
    """Return mean absolute errors as a Markdown table, one row per estimator."""
    groups: list[tuple[str, Any]] = []
    groups += [("n_positive", n) for n in N_POSITIVES]
    groups += [("separation", separation) for separation in SEPARATIONS]
    groups += [("class_prior", class_prior) for class_prior in CLASS_PRIORS]
    heads = ["estimator", "draws", "mean error", "abs. error"]
    heads += [f"{key.replace('_', ' ')} {value:,}" for key, value in groups]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name in ESTIMATORS:
        rows = [result for result in results if result["estimator"] == name]
        if not rows:
            continue
        errors = np.array([row["value"] - row["class_prior"] for row in rows])
        cells = [name, str(len(rows)), f"{errors.mean():+.3f}", _mean_size(errors)]
        for key, value in groups:
            is_in_group = np.array([row[key] == value for row in rows])
            cells.append(_mean_size(errors[is_in_group]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_size(errors: np.ndarray) -> str:
    if not len(errors):
        return "–"
    return f"{np.abs(errors).mean():.3f}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="file for the table; runs are kept in FILE.jsonl"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--estimators", default=",".join(ESTIMATORS), help="separated by commas")
    arguments = parser.parse_args()
    arguments.estimators = arguments.estimators.split(",")
    unknown = sorted(set(arguments.estimators) - set(ESTIMATORS))
    if unknown:
        parser.error(f"no such estimator: {', '.join(unknown)}; known: {', '.join(ESTIMATORS)}")
    return arguments


def main() -> None:
    """Run what is missing and print the table."""
    arguments = _parse_arguments()
    results_path = arguments.out.with_suffix(".jsonl")
    results = read_runs(results_path)
    known_keys = ("estimator", *Setting.__dataclass_fields__)
    finished = {tuple(result[key] for key in known_keys) for result in results}
    for setting in settings(arguments.first_seed, arguments.seeds):
        for name in arguments.estimators:
            if (name, *asdict(setting).values()) in finished:
                continue
            result = estimate(name, setting)
            results.append(result)
            add_run(results_path, result)
    table = format_table(results)
    print(table)
    arguments.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
