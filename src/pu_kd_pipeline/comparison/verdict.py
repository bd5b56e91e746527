"""Which row of a comparison leads, and whether chance can explain it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pu_kd_pipeline.comparison.differences import best_row, differences_to_best
from pu_kd_pipeline.comparison.formatting import signed
from pu_kd_pipeline.comparison.gap_section import headroom_finding
from pu_kd_pipeline.comparison.tables import is_in_column, rivals
from pu_kd_pipeline.reporting.style import UNKNOWN

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.comparison.differences import RowDifference
    from pu_kd_pipeline.comparison.gap import Gap, GapRow

_MAX_NAMED = 4


@dataclass(frozen=True)
class Lead:
    """The best row of one number of labeled images and one length of training."""

    n_updates: int | None
    """None where the comparison has one length."""
    column: float | None
    """Labeled images of each class; None where no row draws any."""
    name: str
    percent: float
    n_seeds: int
    second: str | None
    """The row with the next accuracy; None: there is no other one."""
    to_second: RowDifference | None
    """The second row's accuracy minus that of the best; None: not tested."""
    unclear: list[str]
    """Rows over which chance can explain the lead."""
    untested: list[str]
    """Rows without a common student, so that the lead over them is not tested."""

    @property
    def is_clear(self) -> bool:
        """Whether chance does not explain the lead over any other row."""
        return not self.unclear and not self.untested


def lead_of(
    results: pd.DataFrame, means: pd.DataFrame, n_updates: int | None, column: float | None
) -> Lead | None:
    """Return the best row that is no reference; None where there is none.

    Args:
        results: one row per cell of this length of training.
        means: rows of `means_over_seeds`, without points of sweeps.
        n_updates: the length; None where the comparison has one.
        column: labeled images of each class.
    """
    best = best_row(means, column)
    if best is None:
        return None
    others = rivals(means, column).sort_values("mean", ascending=False)
    others = others[(others["row"] != best["row"]) & others["mean"].notna()]
    tested = differences_to_best(results, means, column)
    unclear = []
    untested = []
    for name in others["row"].unique():
        difference = tested.get(name)
        if difference is None:
            untested.append(str(name))
        elif not difference.accuracy.is_significant:
            unclear.append(str(name))
    second = str(others["row"].iloc[0]) if len(others) else None
    return Lead(
        n_updates,
        column,
        str(best["row"]),
        float(best["mean"]),
        int(best["n_seeds"]),
        second,
        tested.get(second) if second is not None else None,
        unclear,
        untested,
    )


def lead_sentences(lead: Lead, where: str, n_test: int) -> list[str]:
    """Return the verdict, and what it leaves out.

    Args:
        lead: of the row.
        where: such as "after 600 updates"; "" where the comparison has one place alone.
        n_test: number of test images.
    """
    seeds = "one seed" if lead.n_seeds == 1 else f"mean of {lead.n_seeds} seeds"
    reached = f"{lead.percent:.2f} % of {n_test:,} test images, {seeds}"
    if where:
        reached += f", {where}"
    if lead.second is None:
        return [f"“{lead.name}” is the only variant here that is no reference: {reached}."]
    over_second = f"over “{lead.second}”: {lead_text(lead)}"
    if lead.is_clear:
        verdict = (
            f"“{lead.name}” is best: {reached}. Chance does not explain its lead over any other "
            f"variant ({over_second})."
        )
    elif lead.unclear:
        verdict = (
            f"Which variant is best cannot be told: “{lead.name}” leads with {reached}, and chance "
            f"can explain its lead over {_named(lead.unclear)} ({over_second})."
        )
    else:
        verdict = (
            f"Which variant is best was not tested: “{lead.name}” leads with {reached}, without a "
            f"student of the same seed and test images among those of {_named(lead.untested)}."
        )
    return [verdict, _what_was_tested(lead)]


def _what_was_tested(lead: Lead) -> str:
    if lead.to_second is not None and lead.to_second.n_seeds == 1:
        return (
            "One seed was compared: the intervals cover which images are in the test set, and "
            "other seeds may turn the order around."
        )
    return (
        "Intervals cover which images are in the test set and how the seeds fall. The leader was "
        "found on these test images, so that its lead is rather too large than too small."
    )


def lead_text(lead: Lead) -> str:
    """Return the lead over the second row with its interval."""
    if lead.to_second is None:
        return "not tested"
    found = lead.to_second.accuracy
    lower = signed(-100 * found.upper)
    upper = signed(-100 * found.lower)
    return f"{signed(-100 * found.difference)} points, 95 %: {lower} to {upper}, paired"


def verdict_text(lead: Lead) -> str:
    """Return the verdict in a few words."""
    if lead.second is None:
        return "alone"
    if lead.is_clear:
        return "best"
    if lead.unclear:
        return f"cannot be told from {_named(lead.unclear)}"
    return "not tested"


def _named(names: Sequence[str]) -> str:
    shown = [f"“{name}”" for name in names[:_MAX_NAMED]]
    n_more = len(names) - len(shown)
    if n_more:
        shown.append(f"{n_more} more")
    if len(shown) == 1:
        return shown[0]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def yardstick_sentence(results: pd.DataFrame, means: pd.DataFrame, lead: Lead) -> str | None:
    """Return which row is closest to the teacher on the yardstick; None where it is not known."""
    # Numbers of different yardsticks cannot be compared.
    if results["yardstick"].nunique() != 1:
        return None
    in_race = rivals(means, lead.column)
    known = in_race[in_race["yardstick_kl"].notna()]
    if len(known) < 2:
        return None
    closest = known.sort_values("yardstick_kl", kind="stable").iloc[0]
    n_images = int(results["n_yardstick"].max())
    measured = f"{closest['yardstick_kl']:.3f} nats"
    if closest["row"] == lead.name:
        return (
            f"“{lead.name}” is also closest to its teacher on the yardstick, {n_images:,} images "
            f"that no student learned from ({measured}; not tested)."
        )
    of_lead = known.loc[known["row"] == lead.name, "yardstick_kl"]
    if len(of_lead):
        measured += f", “{lead.name}”: {of_lead.iloc[0]:.3f}"
    return (
        f"On the yardstick, {n_images:,} images that no student learned from, "
        f"“{closest['row']}” is closest to its teacher ({measured}; not tested). Choose by the "
        "yardstick: the test images are for the end."
    )


def gap_sentences(gaps: Sequence[Gap], means: pd.DataFrame, lead: Lead) -> list[str]:
    """Return what choosing images can gain, and which row that is no reference gains most of it."""
    sentences = []
    names = set(rivals(means, lead.column)["row"])
    for gap in gaps:
        if gap.n_updates != lead.n_updates or gap.labeled_per_class != lead.column:
            continue
        for headroom in gap.headrooms:
            finding = headroom_finding(gap, headroom, _quoted)
            if finding is not None:
                sentences.append("".join(finding))
            elif headroom.difference is not None:
                gained = points_text(headroom.difference)
                rows = [row for row in gap.rows if row.control == headroom.control]
                closed = _most_closed([row for row in rows if row.name in names])
                sentences.append(
                    f"Choosing images can gain {gained} over “{headroom.control}”, by "
                    f"“{gap.goal}”{closed}."
                )
    return sentences


def _most_closed(rows: Sequence[GapRow]) -> str:
    known = [row for row in rows if row.closed is not None]
    if not known:
        return ""
    most = max(known, key=_share)
    closed = most.closed
    assert closed is not None
    bounds = f"{100 * closed.lower:,.0f} to {100 * closed.upper:,.0f}".replace("-", "−")
    share = f"{100 * closed.share:,.0f}".replace("-", "−")
    return f"; “{most.name}” gains {share} % of it (95 %: {bounds})"


def _share(row: GapRow) -> float:
    assert row.closed is not None
    return row.closed.share


def points_text(found: RowDifference | None) -> str:
    """Return a difference in points with its interval."""
    if found is None:
        return UNKNOWN
    accuracy = found.accuracy
    bounds = f"{signed(100 * accuracy.lower)} to {signed(100 * accuracy.upper)}"
    seeds = ", one seed" if found.n_seeds == 1 else ""
    return f"{signed(100 * accuracy.difference)} points (95 %: {bounds}{seeds})"


def _quoted(name: str) -> str:
    return f"“{name}”"


def place_text(
    n_updates: int | None, column: float | None, *, has_lengths: bool, has_columns: bool
) -> str:
    """Return where in a comparison a row leads; "" where it has one place alone."""
    parts = []
    if has_columns and column is not None:
        parts.append(f"with {column:.0f} labeled images of each class")
    if has_lengths and n_updates is not None:
        parts.append(f"after {n_updates:,} updates")
    return " ".join(parts)


def rows_of_column(means: pd.DataFrame, column: float | None) -> pd.DataFrame:
    """Return the rows with a result for a number of labeled images, the best first."""
    here = means[is_in_column(means, column) & means["mean"].notna()]
    return here.sort_values("mean", ascending=False, kind="stable")
