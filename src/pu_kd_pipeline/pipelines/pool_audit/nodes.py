"""Node functions of the stage `pool_audit`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.pool_audit import PoolAuditParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def draw_audit(
    pool_features: ShardedTable, pool_images: ImageStore, teacher: Model, params: PoolAuditParams
) -> pd.DataFrame:
    """Return the images that a person is asked about."""
    from pu_kd_pipeline.pool_audit.drawing import draw_audit

    return draw_audit(pool_features, pool_images, teacher, params)


def write_audit_page(
    audit_draw: pd.DataFrame, pool_images: ImageStore, labeled_images: ImageStore, teacher: Model
) -> str:
    """Return the page that shows them one by one and saves the answers."""
    from pu_kd_pipeline.reporting.audit_page import render_audit

    return render_audit(audit_draw, pool_images, labeled_images, teacher)


def estimate_audit(
    audit_draw: pd.DataFrame,
    page: str,
    saved_answers: Any,
    teacher: Model,
    params: PoolAuditParams,
) -> dict[str, Any]:
    """Return the class prior by the answers; without any, only what was asked.

    The page is not read: it is written first, so that it is there where answers to an earlier page
    are refused.
    """
    from pu_kd_pipeline.pool_audit.answers import find_answers
    from pu_kd_pipeline.pool_audit.estimation import estimate_audit, unanswered

    answered = find_answers(saved_answers, audit_draw, teacher.card.classes, params)
    if answered is None:
        return unanswered(audit_draw)
    return estimate_audit(answered, teacher.card.classes)


def audit_selection(
    audit_draw: pd.DataFrame,
    audit: dict[str, Any],
    manifest: pd.DataFrame | None,
    pool_features: ShardedTable,
) -> dict[str, Any]:
    """Return the precision of the selection by the answers; empty without answers or manifest."""
    from pu_kd_pipeline.pool_audit.estimation import selection_precision

    if manifest is None or not audit["n_answered"]:
        return {}
    return selection_precision(audit_draw, audit, manifest, pool_features)


def show_audit(audit: dict[str, Any], selection: dict[str, Any]) -> str:
    """Return the result as a page."""
    from pu_kd_pipeline.reporting.audit_result import render_result

    return render_result(audit, selection)


def write_audited_images(
    audit: dict[str, Any], pool_images: ImageStore, params: PoolAuditParams
) -> dict[str, Any]:
    """Return the images that were answered with yes, by class and file name, if asked for."""
    from pu_kd_pipeline.pool_audit.labeled import audited_images

    if not params.write_labeled:
        return {}
    return audited_images(audit, pool_images)
