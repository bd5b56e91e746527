"""Headroom and gap closed, as a section of the comparison's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pu_kd_pipeline.comparison.formatting import difference_text, markdown_table
from pu_kd_pipeline.reporting.markdown import markdown_text
from pu_kd_pipeline.reporting.style import UNKNOWN

if TYPE_CHECKING:
    from pu_kd_pipeline.comparison.gap import Gap, GapRow, Headroom
    from pu_kd_pipeline.learning.paired import GapClosed

_FACTS = (
    "Headroom is what choosing images can gain: the accuracy of {goal}, which uses what a user "
    "does not have, minus that of a control, as many random images. Gap closed is the share of it "
    "that a row gains, (row − control) / ({goal} − control): 0 % is as good as random images, "
    "100 % as {goal}, and more is possible. Each row is compared with the control that has the "
    "nearest number of images. Differences are points of accuracy with the 95 % interval, from "
    "pairs of students of one seed on the same test images; **bold**: chance does not explain "
    "them. Intervals of the gap closed (Fieller's) cover the chance of the test images, and of the "
    "seeds where there are several."
)
_UNEQUAL_SHARES = (
    "`distillation.labeled_share` is null, so that the batches of students with more pool images "
    "have fewer labeled ones: differences to the whole pool, and to controls of another size, are "
    "also differences of that share."
)


def gap_section(gaps: Sequence[Gap]) -> list[str]:
    """Return the parts of the section for one length of training; none without a gap."""
    if not gaps:
        return []
    goal = markdown_text(gaps[0].goal)
    parts = ["## Headroom and gap closed", _FACTS.format(goal=goal)]
    if not all(gap.shares_labeled for gap in gaps):
        parts.append(_UNEQUAL_SHARES)
    for gap in gaps:
        if len(gaps) > 1:
            parts.append(f"### {gap.labeled_per_class:.0f} labeled images of each class")
        parts += _parts_of_gap(gap)
    return parts


def _parts_of_gap(gap: Gap) -> list[str]:
    goal = markdown_text(gap.goal)
    headrooms = [["control", "images", f"headroom: {goal} − control"]]
    for headroom in gap.headrooms:
        difference = difference_text(headroom.difference)
        headrooms.append([markdown_text(headroom.control), f"{headroom.n_images:,.0f}", difference])
    parts = [markdown_table(headrooms)]
    findings = [_finding(gap, headroom) for headroom in gap.headrooms]
    listed = "\n".join(f"- {finding}" for finding in findings if finding)
    if listed:
        parts.append(listed)
    if gap.rows:
        parts.append(_row_table(gap))
    if gap.reasons:
        reasons = "\n".join(f"- {markdown_text(reason)}" for reason in gap.reasons)
        parts.append(
            f"Not compared, because a difference would not be that of the images:\n\n{reasons}"
        )
    return parts


def headroom_finding(
    gap: Gap, headroom: Headroom, written: Callable[[str], str] = str
) -> tuple[str, str] | None:
    """Return a sentence on a control without much headroom in two parts; None where there is some.

    Args:
        gap: of the control.
        headroom: of the control.
        written: how the page writes names.
    """
    goal = written(gap.goal)
    control = written(headroom.control)
    if headroom.kind == "none":
        assert headroom.difference is not None
        least = f"{100 * gap.least_headroom:g}"
        seeds = ", one seed" if headroom.difference.n_seeds == 1 else ""
        return (
            f"Relatedness gains less than {least} points on this pool (95 %{seeds})",
            f": {goal} compared with {control}.",
        )
    if headroom.kind == "unclear":
        return (
            "That relatedness gains anything on this pool is not shown",
            f": chance explains the difference of {goal} and {control}.",
        )
    if headroom.kind == "unknown":
        return (
            "",
            f"{goal} and {control} cannot be compared: there are no two students of one seed that "
            "were trained alike and tested on the same images.",
        )
    return None


def _finding(gap: Gap, headroom: Headroom) -> str | None:
    found = headroom_finding(gap, headroom, markdown_text)
    if found is None:
        return None
    verdict, rest = found
    return f"**{verdict}**{rest}" if verdict else rest


def _row_table(gap: Gap) -> str:
    header = ["", "images", "control", "− control"]
    if gap.whole_pool is not None:
        header.append(f"− {markdown_text(gap.whole_pool)}")
    header.append("gap closed")
    rows = [header]
    for row in gap.rows:
        rows.append(_texts_of_row(row, has_whole_pool=gap.whole_pool is not None))
    return markdown_table(rows)


def _texts_of_row(row: GapRow, has_whole_pool: bool) -> list[str]:
    control = UNKNOWN
    if row.control is not None:
        control = markdown_text(row.control)
    texts = [markdown_text(row.name), f"{row.n_images:,.0f}", control]
    texts.append(difference_text(row.to_control))
    if has_whole_pool:
        texts.append(difference_text(row.to_whole_pool))
    texts.append(_closed_text(row.closed))
    return texts


def _closed_text(closed: GapClosed | None) -> str:
    if closed is None:
        return UNKNOWN
    share = _whole_percent(closed.share)
    lower = _whole_percent(closed.lower)
    upper = _whole_percent(closed.upper)
    return f"{share} % ({lower} to {upper})"


def _whole_percent(share: float) -> str:
    rounded = round(100 * share)
    return f"{rounded:,}".replace("-", "−")
