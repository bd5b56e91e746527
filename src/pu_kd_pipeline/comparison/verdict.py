"""Which row of a comparison leads, and whether chance can explain it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pu_kd_pipeline.comparison.differences import differences_to_best, rank_rows
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
    ahead: list[str]
    """Rows that are better on the seeds that they and the leader have."""
    untested: list[str]
    """Rows without a common student, so that the lead over them is not tested."""
    tested_seeds: tuple[int, int] | None
    """The least and the largest number of seeds of a test; None: nothing was tested."""
    common_seeds: int | None
    """Number of seeds that all rows have, where they differ in their seeds; None: they do not."""

    @property
    def is_clear(self) -> bool:
        """Whether chance does not explain the lead over any other row."""
        return not self.unclear and not self.ahead and not self.untested

    @property
    def has_one_seed(self) -> bool:
        """Whether the lead over a row was tested with one seed alone."""
        return self.tested_seeds is not None and self.tested_seeds[0] == 1


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
    ranking = rank_rows(results, means, column)
    best = ranking.best
    if best is None:
        return None
    others = [str(name) for name in ranking.rows["row"].iloc[1:]]
    tested = differences_to_best(results, means, column)
    unclear = []
    ahead = []
    untested = []
    n_seeds = []
    for name in others:
        difference = tested.get(name)
        if difference is None:
            untested.append(name)
            continue
        n_seeds.append(difference.n_seeds)
        if not difference.accuracy.is_significant:
            unclear.append(name)
        # A lead is clear where the whole interval of the other row is below zero.
        elif difference.accuracy.upper >= 0:
            ahead.append(name)
    second = others[0] if others else None
    return Lead(
        n_updates,
        column,
        str(best["row"]),
        float(best["mean"]),
        int(best["n_seeds"]),
        second,
        tested.get(second) if second is not None else None,
        unclear,
        ahead,
        untested,
        (min(n_seeds), max(n_seeds)) if n_seeds else None,
        None if ranking.is_complete else ranking.n_common,
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
        return [f"“{lead.name}” is the only one with a result that is no reference: {reached}."]
    over_second = f"over “{lead.second}”: {lead_text(lead)}"
    if lead.is_clear and lead.has_one_seed:
        verdict = (
            f"“{lead.name}” leads: {reached}. Which images are in the test set does not explain "
            f"its lead, other seeds may ({over_second})."
        )
    elif lead.is_clear:
        verdict = (
            f"“{lead.name}” is best: {reached}. Chance does not explain its lead over any other "
            f"variant ({over_second})."
        )
    elif lead.ahead:
        verdict = (
            f"Which variant is best is not clear: “{lead.name}” leads with {reached}, and on the "
            f"seeds that both have, {_named(lead.ahead)} {_verb(lead.ahead)} better "
            f"({over_second})."
        )
    elif lead.unclear:
        verdict = (
            f"Which variant is best is not clear: “{lead.name}” leads with {reached}, and chance "
            f"can explain its lead over {_named(lead.unclear)} ({over_second})."
        )
    else:
        verdict = (
            f"Which variant is best was not tested: “{lead.name}” leads with {reached}, without a "
            f"student of the same seed and test images among those of {_named(lead.untested)}."
        )
    return [verdict, *_what_was_compared(lead)]


def _what_was_compared(lead: Lead) -> list[str]:
    limits = []
    if lead.common_seeds is not None:
        by = "their own seeds, as no seed has all of them"
        if lead.common_seeds:
            by = f"the {lead.common_seeds} seeds that all of them have"
            if lead.common_seeds == 1:
                by = "the one seed that all of them have"
        limits.append(
            "The variants do not have the same seeds, or test images: they are ranked by "
            f"{by}. Means are over all seeds of a variant."
        )
    if lead.tested_seeds is None:
        return limits
    if lead.has_one_seed:
        _, most = lead.tested_seeds
        what = "One seed was compared" if most == 1 else "Some were compared by one seed"
        limits.append(
            f"{what}: such intervals cover which images are in the test set, and other seeds may "
            "turn the order around."
        )
    else:
        limits.append(
            "Intervals cover which images are in the test set and the variation over seeds. The "
            "leader was found on these test images, so that its lead is rather too large than too "
            "small."
        )
    return limits


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
        return "the only one with a result"
    if lead.is_clear:
        return "leads (one seed)" if lead.has_one_seed else "best"
    not_behind = [*lead.ahead, *lead.unclear]
    if not_behind:
        return f"not clear: {_named(not_behind)}"
    return "not tested"


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


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
    in_race = rivals(means, lead.column)
    for gap in gaps:
        if gap.n_updates != lead.n_updates or gap.labeled_per_class != lead.column:
            continue
        # The whole pool is a control: nothing is chosen there.
        names = set(in_race.loc[in_race["variant"] != gap.whole_pool, "row"])
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
    largest = ""
    if len(known) > 1:
        largest = f"; as the largest of {len(known)} shares, it is rather too large"
    return f"; “{most.name}” gains {share} % of it (95 %: {bounds}{largest})"


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
