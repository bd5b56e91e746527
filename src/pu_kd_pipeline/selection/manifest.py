"""The manifest: the labeled and pool images that the student learns from, chosen by a rule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.mixture import temperature_of
from pu_kd_pipeline.learning.retrieval import Neighbors
from pu_kd_pipeline.learning.selection import RULES, PoolScores, Selection, needs_budget
from pu_kd_pipeline.learning.selection_criteria import CRITERIA, MixtureOptions, SelectionOptions
from pu_kd_pipeline.learning.selection_size import SelectionSize, own_source, selection_size
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.tie_breaks import report_ties, tie_breaks
from pu_kd_pipeline.storage.manifest import (
    MIXTURE,
    REASON,
    RELATED_PROBABILITY,
    SAMPLING_PROBABILITY,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.sampling import mixture_schedule

if TYPE_CHECKING:
    from pu_kd_pipeline.selection.proxy import Proxy

logger = logging.getLogger(__name__)

MANIFEST_COLUMNS = [
    "id",
    "origin",
    "shard",
    "row",
    "pu_score",
    "teacher_class",
    "teacher_confidence",
    # How the pool part of a batch is drawn, on average over the training; it sums to one over the
    # pool images. Labeled images have none.
    SAMPLING_PROBABILITY,
    REASON,
]
LABELED = "labeled"  # reason of labeled images


@dataclass(frozen=True)
class SubsetInputs:
    """The tables and images that a selection reads."""

    pool_scores: ShardedTable
    labeled_images: ImageStore
    pool_images: ImageStore
    class_prior: dict[str, Any]
    held_out_ranks: pd.DataFrame
    proxy: Proxy | None = None  # read by the rule `disagreement`
    excluded: Excluded = NOTHING_EXCLUDED
    student: DistillationParams | None = None  # read by `mixture`, and where there is no budget
    # Of labeled and pool images; read by the rule `retrieved`.
    features: tuple[ShardedTable, ShardedTable] | None = None

    @cached_property
    def labeled_rows(self) -> np.ndarray:
        """(n,) rows of the labeled images that are not excluded.

        Raises:
            InputError: no image of a class is left.
        """
        index = self.labeled_images.index
        is_excluded = index["id"].isin(self.excluded.all_labeled)
        is_kept = ~is_excluded.to_numpy()
        labels = index["label"]
        all_classes = set(labels.dropna())
        kept_classes = set(labels[is_kept].dropna())
        emptied = sorted(all_classes - kept_classes)
        is_all_excluded = len(index) > 0 and not is_kept.any()
        # The second condition is for images without labels.
        if emptied or is_all_excluded:
            which = ""
            if emptied:
                classes = ", ".join(map(str, emptied))
                which = f" of class {classes}"
            raise InputError(
                f"subset_materialization: every labeled image{which} is a copy of a test image, "
                "so that none is left to learn from. Give data_ingestion.labeled other images, "
                "or set subset_materialization.exclude_test_duplicates to false: "
                "test accuracy will then be unreliable"
            )
        return np.flatnonzero(is_kept)


def choose_subset(inputs: SubsetInputs, params: SubsetParams) -> pd.DataFrame:
    """Return the manifest by the rule of the parameters.

    It holds all labeled images, then the chosen pool images, best first; excluded images are in
    neither. `reason` says why an image is there; the rule `mixture` adds `related_probability`,
    how the related part of a batch is drawn. Its `attrs` hold how it was chosen: rule, criterion,
    budget, class prior, threshold, how many images were excluded, fingerprints of the inputs.

    A flagged class prior cuts nothing: with a budget the criterion `quantile` keeps the images
    with the highest scores, and `disagreement` takes as many for likely positives.

    Raises:
        InputError: the rule cannot choose from this pool, its scores are older than its images,
            all labeled images of a class are excluded, or the criterion cuts by a class prior that
            is flagged.
    """
    params = _without_flagged_prior(params, inputs.class_prior)
    params = _with_temperature(params, inputs.class_prior)
    scores, rows = _selectable_scores(inputs)
    pool = PoolScores(
        pu_score=_scores_of(scores, "pu_score", params),
        teacher_class=scores["teacher_class"].to_numpy(),
        teacher_confidence=scores["teacher_confidence"].to_numpy(),
        teacher_log_odds=_scores_of(scores, "teacher_log_odds", params),
        tie_break=tie_breaks(scores["id"], params.seed),
        relevant=_known_truth(inputs.pool_images, rows),
    )
    ranks: np.ndarray | None = inputs.held_out_ranks["rank"].to_numpy(dtype=float)
    if not len(inputs.held_out_ranks):
        ranks = None  # pu_training.held_out_folds is 0
    disagreement_of = None
    if inputs.proxy is not None:
        disagreement_of = partial(_divergence, inputs.proxy, inputs, scores, rows)
    size = _size(inputs, params, len(pool))
    options = SelectionOptions(
        criterion=params.criterion,
        class_prior=inputs.class_prior["value"],
        budget=size.budget,
        n_likely=size.budget if inputs.class_prior.get("flag") else None,
        target_precision=params.target_precision,
        held_out_ranks=ranks,
        rng=np.random.default_rng(params.seed),
        disagreement_of=disagreement_of,
        neighbors=_neighbors_of(inputs, rows, params),
        mixture=_mixture_options(params),
    )
    try:
        selection = RULES[params.rule].select(pool, options)
    except ValueError as exc:
        raise InputError(f"subset_materialization: {exc}") from exc
    report_ties(selection, params.rule)
    chosen = scores.iloc[selection.rows]
    manifest = _manifest(chosen, inputs)
    _describe_draws(manifest, selection, inputs, params)
    facts = _facts(selection, size, inputs, params)
    _report_size(facts, len(pool))
    manifest.attrs.update(facts)
    return manifest


def _without_flagged_prior(params: SubsetParams, prior: Mapping[str, Any]) -> SubsetParams:
    """Return the parameters, with another criterion where theirs would cut by a flagged prior.

    Raises:
        InputError: there is no other criterion, or it needs a budget.
    """
    flag = prior.get("flag")
    criterion = CRITERIA[params.criterion]
    is_read = RULES[params.rule].uses_criterion and criterion.reads_class_prior
    if flag is None or not is_read:
        return params
    if criterion.without_class_prior is not None and params.budget is not None:
        return params.model_copy(update={"criterion": criterion.without_class_prior})
    way_out = "subset_materialization.budget"
    if criterion.without_class_prior is None:
        way_out = f"criterion 'budget' and {way_out}"
    readings = prior["readings"]
    raise InputError(
        f"subset_materialization: criterion {params.criterion!r} cuts by the class prior, which is "
        f"flagged ({flag}): a trained classifier reads {readings['trained']:.3f} and the teacher's "
        f"outputs read {readings['outputs']:.3f}; set pu_training.class_prior, or {way_out}"
    )


def _with_temperature(params: SubsetParams, prior: Mapping[str, Any]) -> SubsetParams:
    """Return the parameters with a temperature of the rule `mixture`: theirs, or by the prior."""
    is_read = RULES[params.rule].options == MIXTURE
    if not is_read or params.mixture.temperature is not None:
        return params
    # None without a PU classifier.
    readings = [] if prior["value"] is None else [prior["value"]]
    # None where the class prior is given.
    compared = prior.get("readings")
    if compared is not None:
        readings += [compared["outputs"], compared["outputs_bbe"]]
    changes = {"temperature": temperature_of(readings)}
    origin = "half of the largest reading of the class prior"
    if not readings:
        origin = "because no class prior is known"
    logger.info("rule %r: temperature %.3g, %s", params.rule, changes["temperature"], origin)
    return params.model_copy(update={"mixture": params.mixture.model_copy(update=changes)})


def _mixture_options(params: SubsetParams) -> MixtureOptions:
    score, temperature = params.mixture.score, params.mixture.temperature
    if temperature is None:
        return MixtureOptions(score=score)  # another rule, which does not read it
    return MixtureOptions(score=score, temperature=temperature)


def _size(inputs: SubsetInputs, params: SubsetParams, n_selectable: int) -> SelectionSize:
    """Return how many images the rule may keep, see `selection_size`.

    Raises:
        InputError: the number depends on the student's parameters, and they are not given.
    """
    student = inputs.student
    n_draws = 0.0
    if student is not None:
        # Without a share of its own, labeled images are a small part of what is shown.
        pool_share = 1.0 - (student.labeled_share or 0.0)
        n_draws = student.n_updates * student.batch_size * pool_share
    elif params.budget is None and needs_budget(params.rule, params.criterion):
        raise InputError(f"rule {params.rule!r} needs a budget, or the student's parameters")
    return selection_size(
        params.rule,
        params.criterion,
        params.budget,
        n_draws=n_draws,
        n_pool=n_selectable,
        showings=params.showings,
    )


def _report_size(facts: Mapping[str, Any], n_selectable: int) -> None:
    n_selected = facts["n_selected"]
    logger.info(
        "rule %r keeps %s of %s pool images; the number comes from: %s",
        facts["rule"],
        f"{n_selected:,}",
        f"{n_selectable:,}",
        facts["size_source"],
    )


def _neighbors_of(
    inputs: SubsetInputs, rows: np.ndarray, params: SubsetParams
) -> Callable[[int], Neighbors] | None:
    """Return a function that finds the neighbors of the labeled images; None without features."""
    features = inputs.features
    if features is None:
        return None
    labeled_features, pool_features = features

    def neighbors_of(n_retrieved: int) -> Neighbors:
        from pu_kd_pipeline.selection.retrieval import find_neighbors

        return find_neighbors(
            inputs.labeled_images.index["id"].to_numpy()[inputs.labeled_rows],
            labeled_features,
            pool_features,
            inputs.pool_images,
            rows,
            n_retrieved,
            params.retrieved,
            params.seed,
        )

    return neighbors_of


def _describe_draws(
    manifest: pd.DataFrame, selection: Selection, inputs: SubsetInputs, params: SubsetParams
) -> None:
    """Add to a manifest why each image is in it, and how its pool images are drawn."""
    is_of_pool = (manifest["origin"] == "pool").to_numpy()
    n_selected = len(selection.rows)
    reasons = selection.reasons
    if reasons is None:
        reasons = np.full(n_selected, RULES[params.rule].reason)
    manifest.loc[is_of_pool, REASON] = reasons
    drawn = np.full(n_selected, 1.0 / n_selected)
    related = selection.related_probability
    if related is not None:
        manifest[RELATED_PROBABILITY] = np.nan
        manifest.loc[is_of_pool, RELATED_PROBABILITY] = related
        n_labeled = len(manifest) - n_selected
        mean_share = _mean_related_share(related, n_labeled, inputs, params)
        drawn = mean_share * related + (1.0 - mean_share) * drawn
    manifest.loc[is_of_pool, SAMPLING_PROBABILITY] = drawn


def _mean_related_share(
    related: np.ndarray, n_labeled: int, inputs: SubsetInputs, params: SubsetParams
) -> float:
    """Return the share of related draws among the draws of the pool, over the whole training."""
    student = inputs.student
    if student is None:
        raise InputError(f"rule {params.rule!r} needs the student's parameters")
    labeled_share = student.labeled_share
    if labeled_share is None or n_labeled == 0:
        labeled_share = n_labeled / (n_labeled + len(related))
    options = params.mixture.model_dump()
    return mixture_schedule(torch.from_numpy(related), labeled_share, options, student).mean


def _known_truth(pool_images: ImageStore, rows: np.ndarray) -> np.ndarray | None:
    """Return (n,) bool, which images at these rows are relevant; None if any is unknown."""
    relevant = pool_images.index["relevant"].iloc[rows]
    if relevant.isna().any():
        return None
    return relevant.to_numpy(dtype=bool)


def _selectable_scores(inputs: SubsetInputs) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the scores of the pool images that are not excluded, and their rows in the store.

    Raises:
        InputError: the scores do not cover the pool.
    """
    scores = inputs.pool_scores.to_pandas()
    ids = scores["id"]
    rows = find_rows(inputs.pool_images, ids.to_numpy(), "pool_scores")
    n_scored = len(rows)
    n_pool = len(inputs.pool_images)
    if n_scored < n_pool:
        raise InputError(
            f"pool_scores: they cover {n_scored:,} of the {n_pool:,} pool "
            "images. Run the stages from `feature_extraction` on again"
        )
    is_excluded = ids.isin(inputs.excluded.all_pool)
    is_selectable = ~is_excluded.to_numpy()
    return scores[is_selectable], rows[is_selectable]


def _scores_of(scores: pd.DataFrame, column: str, params: SubsetParams) -> np.ndarray | None:
    """Return a column of the scores; None where it is missing and the rule does not rank by it.

    Raises:
        InputError: the rule ranks by it.
    """
    if column in scores:
        return scores[column].to_numpy()
    if params.ranked_by == column:
        raise InputError(
            f"pool_scores: the column {column} is missing, by which rule {params.rule!r} ranks: "
            "another version wrote the table. Run `kedro run --pipeline=pool_scoring` again"
        )
    return None


def _divergence(
    proxy: Proxy, inputs: SubsetInputs, scores: pd.DataFrame, rows: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Return the proxy's divergence from the teacher on each selectable pool image.

    Args:
        proxy: distilled on the chosen images.
        inputs: the images.
        scores: (n,) selectable pool images.
        rows: (n,) their rows in the store.
        chosen: (m,) positions in `scores`.

    Returns:
        (n,) in the order of the scores.
    """
    manifest = _manifest(scores.iloc[chosen], inputs)
    # Of all pool images, in the order of the store.
    divergence = proxy.divergence(manifest, inputs.labeled_images, inputs.pool_images)
    return divergence[rows]


def choose_random_subset(
    inputs: SubsetInputs, manifest: pd.DataFrame, params: SubsetParams
) -> pd.DataFrame:
    """Return a manifest of equal size whose pool images were drawn at random."""
    is_of_pool = manifest["origin"] == "pool"
    n_pool = int(is_of_pool.sum())
    at_random = params.model_copy(update={"rule": "random", "budget": n_pool})
    return choose_subset(inputs, at_random)


def _manifest(chosen: pd.DataFrame, inputs: SubsetInputs) -> pd.DataFrame:
    labeled = located(inputs.labeled_images, inputs.labeled_rows)
    labeled["origin"] = "labeled"
    labeled[REASON] = LABELED
    chosen_rows = find_rows(inputs.pool_images, chosen["id"].to_numpy(), "pool_scores")
    pool = located(inputs.pool_images, chosen_rows)
    pool["origin"] = "pool"
    for column in ("teacher_class", "teacher_confidence"):
        pool[column] = chosen[column].to_numpy()
    pool["pu_score"] = np.float32(np.nan)
    # Without a PU classifier there is no such score.
    if "pu_score" in chosen:
        pool["pu_score"] = chosen["pu_score"].to_numpy()
    joined = pd.concat([labeled, pool], ignore_index=True)
    manifest = joined.reindex(columns=MANIFEST_COLUMNS)
    # Nullable: the teacher's class of labeled images is not known here.
    manifest["teacher_class"] = manifest["teacher_class"].astype("Int32")
    manifest[SAMPLING_PROBABILITY] = manifest[SAMPLING_PROBABILITY].astype("float64")
    ids = manifest["id"]
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise InputError(
            f"{len(repeated)} ids are labeled and in the pool too, such as "
            f"{repeated.iloc[0]!r}: give the sources names"
        )
    return manifest


def located(store: ImageStore, rows: np.ndarray) -> pd.DataFrame:
    """Return `id`, `shard` and `row` of the images at (n,) rows of a store."""
    all_images = store.index[["id", "shard", "row"]]
    return all_images.iloc[rows].reset_index(drop=True)


def _facts(
    selection: Selection, size: SelectionSize, inputs: SubsetInputs, params: SubsetParams
) -> dict[str, Any]:
    n_selected = len(selection.rows)
    criterion = None
    if RULES[params.rule].uses_criterion:
        criterion = params.criterion
    prior = inputs.class_prior
    n_labeled = len(inputs.labeled_rows)
    return {
        **params.model_dump(mode="json", exclude=params.unread_option_blocks()),
        "criterion": criterion,
        "class_prior": prior["value"],
        "class_prior_lower": prior["lower"],
        "class_prior_upper": prior["upper"],
        "threshold": selection.threshold,
        "estimated_precision": selection.estimated_precision,
        "n_tied_at_cut": selection.n_tied_at_cut,
        "n_labeled": n_labeled,
        "n_selected": n_selected,
        "size_source": size.source_of(n_selected, own_source(params.rule, params.criterion)),
        "n_pool": len(inputs.pool_images),
        **_excluded_counts(inputs),
        "fingerprints": {
            "labeled_images": inputs.labeled_images.fingerprint,
            "pool_images": inputs.pool_images.fingerprint,
            "pool_scores": inputs.pool_scores.fingerprint,
        },
    }


def _excluded_counts(inputs: SubsetInputs) -> dict[str, int]:
    """Return how many images of the stores are left out, each counted for one reason."""
    excluded = inputs.excluded
    labeled_ids = inputs.labeled_images.index["id"]
    return {
        "n_excluded_labeled": int(labeled_ids.isin(excluded.labeled).sum()),
        "n_excluded_pool": len(excluded.pool),
        "n_yardstick_labeled": int(
            labeled_ids.isin(excluded.yardstick_labeled - excluded.labeled).sum()
        ),
        "n_yardstick_pool": len(excluded.yardstick_pool - excluded.pool),
    }
