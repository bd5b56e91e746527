"""The methods that estimate a class prior: one record each.

Parameters, training, reports and benchmarks read these records, so a method is added here and
nowhere else. The import stays free of torch, because the command line reads the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pu_kd_pipeline.learning.class_prior.estimators import (
    Scores,
    best_bin_estimate,
    density_ratio_estimate,
    kernel_mean_estimate,
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an estimator reads, and the classifier that has to be trained for it."""

    description: str
    """For the description of the parameter, after the names of the methods."""
    trains_classifier: bool
    """True: the estimator reads (n,) held-out scores; False: it reads (n, F) features."""
    drops_likely_positives: bool
    """The classifier learns by (TED)^n, see `cross_fitted_ranks`."""


SCORES = Evidence(
    description="read the scores of a classifier of positives against unlabeled",
    trains_classifier=True,
    drops_likely_positives=False,
)
TED_SCORES = Evidence(
    description="read the scores of a classifier that drops likely positives from the unlabeled "
    "as it learns",
    trains_classifier=True,
    drops_likely_positives=True,
)
FEATURES = Evidence(
    description="reads the features, trains nothing",
    trains_classifier=False,
    drops_likely_positives=False,
)


@dataclass(frozen=True, kw_only=True)
class ClassPriorMethod:
    """A method, under its name in `METHODS`."""

    title: str
    """The name that reports print."""
    evidence: Evidence
    estimate: Callable[[Scores, Scores], tuple[float, float | None]]
    """(positive, unlabeled) -> (class prior in [0, 1], the deciding score or None)."""


METHODS: dict[str, ClassPriorMethod] = {
    "bbe": ClassPriorMethod(title="BBE", evidence=SCORES, estimate=best_bin_estimate),
    "dedpul": ClassPriorMethod(title="DEDPUL", evidence=SCORES, estimate=density_ratio_estimate),
    "ted": ClassPriorMethod(title="(TED)^n", evidence=TED_SCORES, estimate=best_bin_estimate),
    "ted_dedpul": ClassPriorMethod(
        title="(TED)^n, read by DEDPUL", evidence=TED_SCORES, estimate=density_ratio_estimate
    ),
    "km2": ClassPriorMethod(title="KM2", evidence=FEATURES, estimate=kernel_mean_estimate),
}


def describe_methods() -> str:
    """Return one line that explains all methods, those that read the same evidence together."""
    names: dict[Evidence, list[str]] = {}
    for name, method in METHODS.items():
        group = names.setdefault(method.evidence, [])
        group.append(name)

    lines = []
    for evidence, group in names.items():
        listed = ", ".join(group)
        lines.append(f"{listed}: {evidence.description}")
    return "; ".join(lines)


def method_title(name: str) -> str:
    """Return the title of a method; a name that is not in `METHODS` is its own title."""
    # A report may be rendered from a class prior that another version of this package wrote.
    if name not in METHODS:
        return name
    return METHODS[name].title
