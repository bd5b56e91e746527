"""The page that shows the result of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.reporting.html import render_page
from pu_kd_pipeline.reporting.style import UNKNOWN, percent


def render_result(audit: Mapping[str, Any], selection: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        audit: result of `pool_audit.estimation.estimate_audit`, or `unanswered`.
        selection: result of `selection_precision`; empty where there is none.
    """
    return render_page(
        "audit_result.html.jinja",
        title="Result of the audit",
        sentences=audit_sentences(audit, selection),
        tiles=_tiles(audit, selection),
        strata=_strata_rows(audit),
        ranking=_ranking_rows(audit),
        negatives=audit["negatives"],
        cannot_tell=audit["cannot_tell"],
        provenance=[(name, str(value)) for name, value in audit["provenance"].items()],
    )


def audit_sentences(audit: Mapping[str, Any], selection: Mapping[str, Any]) -> list[str]:
    """Return what an audit says in sentences, the most important one first."""
    prior = audit["class_prior"]
    if prior is None:
        return [
            f"None of the {audit['n_images']:,} images is answered yet: open pool_audit.html, "
            "which is next to this page.",
        ]
    sentences = [
        f"{interval_text(prior)} of the pool belongs to the teacher's classes, by the answers to "
        f"{audit['n_answered']:,} images.",
        f"The interval has a level of {percent(audit['level'], 0)}. It holds for any pool, as long "
        "as the answers are right.",
    ]
    n_unknown = len(audit["cannot_tell"])
    if n_unknown:
        sentences.append(
            f"{n_unknown} answered with “cannot tell” count as half a yes in the estimate, as no "
            "in the lower limit and as yes in the upper one."
        )
    if selection.get("value") is not None:
        sentences.append(
            f"Of the {selection['n_selected']:,} pool images that the rule {selection['rule']} "
            f"prefers, {interval_text(selection)} belong to the teacher's classes, by the "
            f"{selection['n']:,} of them that were answered."
        )
    return sentences


def interval_text(share: Mapping[str, Any]) -> str:
    """Return a share with its interval, such as "8.2 % (4.1 to 16.0)"."""
    limits = f"{100 * share['lower']:.1f} to {100 * share['upper']:.1f}"
    return f"{percent(share['value'])} ({limits})"


def _tiles(audit: Mapping[str, Any], selection: Mapping[str, Any]) -> list[dict[str, str]]:
    if audit["class_prior"] is None:
        return []
    prior = audit["class_prior"]
    limits = f"{100 * prior['lower']:.1f}–{100 * prior['upper']:.1f} %"
    tiles = [
        {"name": "class prior", "value": percent(prior["value"]), "role": "student"},
        {"name": f"{percent(audit['level'], 0)} interval", "value": limits, "role": "student"},
    ]
    if selection.get("value") is not None:
        precision = percent(selection["value"])
        tiles.append({"name": "precision of the selection", "value": precision, "role": "teacher"})
    return tiles


def _strata_rows(audit: Mapping[str, Any]) -> list[list[str]]:
    rows = [["ranks", "of the pool", "answered", "yes", "no", "cannot tell"]]
    for stratum in audit["strata"]:
        # A pool of few images has no such ranks.
        if not stratum["weight"]:
            continue
        ranks = f"{stratum['first_rank']:,} to {stratum['last_rank']:,}"
        numbers = [str(stratum[key]) for key in ("n", "yes", "no", "cannot_tell")]
        rows.append([ranks, percent(stratum["weight"]), *numbers])
    return rows


def _ranking_rows(audit: Mapping[str, Any]) -> list[list[str]]:
    rows = [["images from the top", "answered", "precision", "95 % interval"]]
    for entry in audit["ranking"]:
        interval = f"{percent(entry['lower'])} to {percent(entry['upper'])}"
        precision = UNKNOWN if not entry["n"] else percent(entry["value"])
        rows.append([f"{entry['n_pool']:,}", str(entry["n"]), precision, interval])
    return rows
