"""Images that cannot be stored: the statuses that give the reason, and how many are tolerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.sources.base import CONFLICTING_LABELS, SourceLostError
from pu_kd_pipeline.images.sources.links import HOW_TO_FOLLOW
from pu_kd_pipeline.images.sources.parquet_columns import HOW_TO_EMBED

OK = "ok"
DUPLICATE = "duplicate"  # the status is "duplicate of <id>"
CONFLICT = CONFLICTING_LABELS  # the status is "conflicting labels: <class> and <class>"


def duplicate_of(image_id: str) -> str:
    """Return the status of an image whose pixels equal those of another image."""
    return f"{DUPLICATE} of {image_id}"


def counts_by_reason(statuses: pd.Series) -> dict[str, int]:
    """Return how many images are quarantined per reason, most first; all duplicates share one."""
    reasons: Counter[str] = Counter()
    for status in statuses:
        reason = status
        for kind in (DUPLICATE, CONFLICT):
            if status.startswith(kind):
                reason = kind
        reasons[reason] += 1
    return dict(reasons.most_common())


def check_quarantine(
    plan: IngestionPlan, quarantine: pd.DataFrame, wanted: pd.DataFrame, n_before_draws: int
) -> None:
    """Check that no more images are quarantined than the plan allows.

    A source lists faults of all its images, of which it may draw a few: the faults are compared
    with the images before the draw, and only those of drawn images with their number.

    Args:
        plan: of the store.
        quarantine: `id` and `status` of the images that are quarantined so far.
        wanted: `id` and `is_outside_draw` of all images, as `list_images` returns them.
        n_before_draws: images of the sources with a draw before it, including those with faults.

    Raises:
        SourceLostError: there are too many, but only because of those that could not be opened.
        InputError: there are too many.
    """
    is_outside = wanted["is_outside_draw"].to_numpy(dtype=bool)
    if not is_outside.any():
        _check_share(plan, quarantine, len(wanted))
        return
    ids_outside = wanted.loc[is_outside, "id"]
    is_listed_fault = quarantine["id"].isin(ids_outside)
    _check_share(plan, quarantine[is_listed_fault], n_before_draws)
    _check_share(plan, quarantine[~is_listed_fault], int((~is_outside).sum()))


def _check_share(plan: IngestionPlan, quarantine: pd.DataFrame, n_images: int) -> None:
    """Check that the share of quarantined images is at most the one that the plan allows.

    Raises:
        SourceLostError: there are too many, but only because of those that could not be opened.
        InputError: there are too many.
    """
    limit = plan.store.max_quarantined_share * n_images
    n_quarantined = len(quarantine)
    if n_quarantined <= limit:
        return
    where = f"data_ingestion.{plan.name}"
    not_opened = quarantine.loc[quarantine["status"] == Reason.NOT_OPENED, "id"]
    # A disk or a network that went away says nothing about the images: a rerun may find them.
    if n_quarantined - len(not_opened) <= limit:
        raise SourceLostError(
            f"{where}: {len(not_opened):,} of {n_images:,} images could not be opened, such as "
            f"{not_opened.iloc[0]!r}: is the source still there, and may it be read? "
            "Finished shards are kept: the same command resumes from there"
        )

    counts = counts_by_reason(quarantine["status"])
    advice = _advice(counts)
    fix = "Fix the images, or raise the limit"
    if advice:
        fix = f"{advice}. Else fix the images, or raise the limit"
    raise InputError(
        f"{where}: {n_quarantined:,} of {n_images:,} images cannot be used "
        f"{_reasons_text(quarantine)}, more than the share "
        f"{plan.store.max_quarantined_share} that data_ingestion.store.max_quarantined_share "
        f"allows. {fix}; nothing was written"
    )


def check_any_is_usable(plan: IngestionPlan, quarantine: pd.DataFrame, n_images: int) -> None:
    """Check that a store holds an image, however many may be quarantined.

    Raises:
        InputError: all its images are quarantined.
    """
    if not n_images or len(quarantine) < n_images:
        return
    fix = _advice(counts_by_reason(quarantine["status"])) or "fix the images"
    raise InputError(
        f"data_ingestion.{plan.name}: none of {n_images:,} images can be used "
        f"{_reasons_text(quarantine)}, so that the store would be empty: {fix}, or correct "
        "its sources"
    )


def _advice(counts: Mapping[str, int]) -> str:
    """Return what to do about the reasons that are no faults of the images."""
    sentences = []
    if Reason.LINK in counts:
        sentences.append(f"As for the links, {HOW_TO_FOLLOW}")
    if Reason.ONLY_A_PATH in counts:
        sentences.append(f"As for the paths, they are not opened: {HOW_TO_EMBED}")
    return ". ".join(sentences)


def _reasons_text(quarantine: pd.DataFrame) -> str:
    """Return why images are quarantined, in parentheses, with an example."""
    counts = counts_by_reason(quarantine["status"])
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in counts.items())
    first = quarantine.iloc[0]
    return f"({reasons}; such as {first['id']!r}: {first['status']})"
