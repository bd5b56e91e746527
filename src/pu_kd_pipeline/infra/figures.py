"""The figures of a run: tables and arrays in, one matplotlib `Figure` out.

Every role keeps its colour in all figures: Okabe and Ito's palette, colour-blind safe, and apart in lightness too.
No pyplot and no global state: a figure belongs to its caller, and matplotlib is imported when the first one is drawn.
A title states the finding, the line below it the evidence. How and where a figure is saved is the catalog's business.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pu_kd_pipeline.infra.image_store import ImageStore

TEACHER, STUDENT, RANDOM = "#3d3d3d", "#0072b2", "#e69f00"
RELEVANT, UNLABELED, ALERT = "#009e73", "#b4b4b4", "#d55e00"
DARK_ALERT = "#a84300"  # the same as small text on white
INK, MUTED, GRID = "#222222", "#666666", "#e6e6e6"

WIDTH_IN, HEADER_IN = 8.4, 0.52
MAX_NAMED_CLASSES = 40  # more rows than this cannot be read: the figure then shows the sorted distribution
MAX_MARKED_POINTS = 16  # a curve with fewer points shows each of them
IMAGES_PER_ROW = 10
SMALL_IMAGE_PX = 64  # up to this size pixels are shown as squares, not smoothed
# Three shapes that stay visible where they coincide: a hollow square around a bar with a dot on it.
_MARKS: dict[str, dict[str, Any]] = {
    "s": {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.7},
    "|": {"markersize": 16, "markeredgewidth": 2.4},
    "o": {"markersize": 6.5, "markeredgecolor": "white"},
}
RULES_WITHOUT_CUT = ("random", "oracle", "stratified", "disagreement", "all")
RULES_BY_CONFIDENCE = ("confident",)


def plot_score_histogram(
    pool_scores: pd.DataFrame, manifest: pd.DataFrame, pool_images: ImageStore, class_prior: Mapping[str, Any]
) -> Figure:
    """Return the histogram of the pool's PU scores, with the threshold and, where known, both true populations.

    The scores are binned, so a million of them cost no more ink than a hundred.

    Args:
        pool_scores: one row a pool image; `id`, `pu_score`.
        manifest: the kept images, `id` and `origin`; attrs `rule`, `criterion` and `threshold` (None: no cut).
        pool_images: its index carries `relevant`; null where the truth is unknown.
        class_prior: `value` in [0, 1], and where estimated `lower` and `upper`.

    Raises:
        ValueError: there is no finite score to draw.
    """
    scores = pool_scores["pu_score"].to_numpy(np.float64)
    is_finite = np.isfinite(scores)
    if not is_finite.any():
        raise ValueError("pool_scores holds no finite pu_score: there is no histogram to draw")
    is_selected, relevant = selection_mask(pool_scores, manifest), relevance(pool_scores, pool_images)
    threshold = score_threshold(manifest, "pu_score")
    edges = _bin_edges(scores[is_finite], threshold)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.histogram(scores[mask & is_finite], edges)[0]

    is_known = ~np.isnan(relevant)
    populations = [
        ("not relevant", UNLABELED, relevant == 0.0),
        ("truth unknown" if is_known.any() else "unlabeled", "#d9d9d9" if is_known.any() else UNLABELED, ~is_known),
        ("relevant", RELEVANT, relevant == 1.0),
    ]
    counted = [(name, colour, count(mask), int(mask.sum())) for name, colour, mask in populations if mask.any()]
    figure = _figure(4.3)
    axes = figure.add_subplot()
    for name, colour, counts, n in counted:
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.55, label=f"{name} ({n:,})")
        axes.stairs(counts, edges, color=_darker(colour), linewidth=1.1)
    n_selected, n_pool, kept = int(is_selected.sum()), len(scores), count(is_selected)
    axes.set_xlim(edges[0] - 0.5 * (edges[1] - edges[0]), edges[-1] + 0.5 * (edges[1] - edges[0]))
    if threshold is not None:
        _mark_threshold(axes, threshold, is_strict=manifest.attrs.get("criterion") == "sign")
    if threshold is None or n_selected < int(
        (scores > threshold).sum()
    ):  # the manifest holds a draw, not all that passed
        axes.stairs(kept, edges, color=STUDENT, linewidth=1.8, label=f"selected ({n_selected:,})")

    peaks = [counts.max() for _, _, counts, _ in counted] + [kept.max()]
    is_log = max(peaks) > 20 * max(1, min(peak for peak in peaks if peak > 0))  # else a small population lies flat
    if is_log:
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(peaks) * (max(peaks) / 0.7) ** 0.28)
    else:
        axes.set_ylim(0, max(peaks) * 1.22)
    _dress(axes, "PU score F(x)", "pool images per bin" + (" (log scale)" if is_log else ""))
    if not is_log:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", ncols=4, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.4)

    evidence = [describe_prior(class_prior)]
    if is_known.any():
        n_hits = float((relevant[is_selected & is_known] == 1).sum())
        precision, recall = n_hits / max(1, (is_selected & is_known).sum()), n_hits / max(1, (relevant == 1).sum())
        evidence.append(f"precision {percent(precision)}, recall {percent(recall)} by the hidden truth")
    finding = f"{n_selected:,} of {n_pool:,} pool images selected ({percent(n_selected / n_pool)})"
    _title(figure, finding, "; ".join(evidence))
    return figure


def plot_pu_history(pu_history: pd.DataFrame) -> Figure:
    """Return the course of PU training: the risk and its parts, ascent steps and, where measured, held-out 0-1 risk.

    Args:
        pu_history: one row an epoch; `epoch`, `risk`, `positive_risk`, `negative_risk`, `ascent_share` in [0, 1] and,
            optional or NaN, `held_out_zero_one_risk`.
    """
    epoch = pu_history["epoch"].to_numpy()
    held_out = _column(pu_history, "held_out_zero_one_risk")
    figure = _figure(4.3)
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    risks = figure.add_subplot(grid[:, 0])
    curves = [
        ("PU risk", INK, _column(pu_history, "risk")),
        ("positive part", RELEVANT, _column(pu_history, "positive_risk")),
        ("negative part", "#8a8a8a", _column(pu_history, "negative_risk")),
    ]
    risks.axhline(0, color=MUTED, linewidth=0.8)
    _curves(risks, [(name, colour, epoch, values) for name, colour, values in curves])
    _dress(risks, "epoch", "risk on the training batches")

    ascent = figure.add_subplot(grid[0, 1] if np.isfinite(held_out).any() else grid[:, 1], sharex=risks)
    _curves(ascent, [(None, ALERT, epoch, 100 * _column(pu_history, "ascent_share"))])
    ascent.set_ylim(0, max(5.0, ascent.get_ylim()[1]))
    _dress(ascent, "epoch", "ascent steps (%)")
    final = [f"{percent(np.nanmean(_column(pu_history, 'ascent_share')))} of all steps were ascent steps"]
    if np.isfinite(held_out).any():
        zero_one = figure.add_subplot(grid[1, 1], sharex=risks)
        zero_one.axhline(0, color=MUTED, linewidth=0.8)
        _curves(zero_one, [(None, STUDENT, epoch, held_out)])
        _dress(zero_one, "epoch", "held-out 0-1 risk")
        ascent.set_xlabel("")
        final.append(f"held-out 0-1 risk {held_out[np.isfinite(held_out)][-1]:.3f} at the end")
    n_epochs = len(epoch)
    _integer_epochs(risks, epoch)
    finding = f"PU risk {_last(curves[0][2]):.3f} after {n_epochs:,} epoch{'s' * (n_epochs != 1)}"
    _title(figure, finding, "; ".join(final))
    return figure


def plot_critic_history(history: pd.DataFrame, collapse: str | None) -> Figure:
    """Return how well the critic tells student from teacher, how often its risk was cut off, and the student's losses.

    Args:
        history: one row a record; `update`, `critic_auc` and `clamped_share` in [0, 1], `kl_loss`, `attention_loss`,
            `student_critic_loss`.
        collapse: why the critic was of no use in the end; None where it was of use.
    """
    update, auc = history["update"].to_numpy(), _column(history, "critic_auc")
    clamped = 100 * _column(history, "clamped_share")
    figure = _figure(4.3)
    grid = figure.add_gridspec(2, 2)
    ranks = figure.add_subplot(grid[0, 0])
    ranks.axhline(0.5, color=MUTED, linewidth=0.8)
    _curves(ranks, [(None, INK, update, auc)])
    ranks.set_ylim(0.4, 1.02)
    _dress(ranks, "", "critic's AUC")
    cuts = figure.add_subplot(grid[1, 0], sharex=ranks)
    _curves(cuts, [(None, ALERT, update, clamped)])
    cuts.set_ylim(-2, 102)
    _dress(cuts, "student updates", "steps cut off (%)")
    losses = figure.add_subplot(grid[:, 1], sharex=ranks)
    curves = [
        ("divergence", STUDENT, _column(history, "kl_loss")),
        ("attention", RELEVANT, _column(history, "attention_loss")),
        ("critic", INK, _column(history, "student_critic_loss")),
    ]
    _curves(losses, [(name, colour, update, values / values[0]) for name, colour, values in curves if values[0] > 0])
    _dress(losses, "student updates", "student's losses, of their first values")
    losses.xaxis.set_major_formatter("{x:,.0f}")
    finding = "The critic tells student from teacher, and not too well"
    if collapse:
        finding = collapse.partition(":")[0].capitalize()
    cut = f"{percent(np.nanmean(clamped) / 100)} of its steps were cut off at zero"
    _title(figure, finding, f"AUC {_last(auc):.3f} at the end; {cut}")
    return figure


def plot_class_weights(class_weights: pd.DataFrame) -> Figure:
    """Return the teacher's probability mass per class beside the weight that evens it out (Eq. 7), clipped ones marked.

    Args:
        class_weights: one row a class; `class_name`, `teacher_mass` >= 0, `raw_weight`, `weight` >= 0, `is_clipped`.
    """
    table = class_weights.sort_values("teacher_mass", ascending=False, kind="stable").reset_index(drop=True)
    mass, weight = table["teacher_mass"].to_numpy(np.float64), table["weight"].to_numpy(np.float64)
    clipped, names = table["is_clipped"].to_numpy(bool), table["class_name"].astype(str).tolist()
    n_classes, place = len(table), np.arange(len(table))
    is_named = n_classes <= MAX_NAMED_CLASSES
    if is_named:
        figure = _figure(max(2.6, 1.3 + 0.25 * n_classes))
        masses, weights = figure.subplots(1, 2, sharey=True)
        masses.barh(place, mass, height=0.62, color=TEACHER)
        weights.hlines(place, 1.0, weight, color=GRID, linewidth=2)
        weights.axvline(1, color=MUTED, linewidth=0.8)
        weights.plot(weight[~clipped], place[~clipped], "o", color=STUDENT, markersize=6)
        weights.plot(weight[clipped], place[clipped], "D", color=ALERT, markersize=6)
        for row in place[clipped]:
            weights.annotate(
                f"clipped from {table['raw_weight'][row]:.3g}", (weight[row], row), (7, 0), textcoords="offset points",
                color=DARK_ALERT, fontsize=8, va="center",
            )  # fmt: skip
        masses.set_yticks(place, [_short(name) for name in names])
        masses.invert_yaxis()
        weights.set_xlim(0, max(1.0, weight.max()) * (1.5 if clipped.any() else 1.1))
        _dress(masses, "teacher's probability mass (images)", "", grid="x")
        _dress(weights, "weight of the class in the distillation loss", "", grid="x")
        masses.tick_params(axis="y", length=0)
        weights.tick_params(axis="y", length=0)
    else:
        figure = _figure(5.0)
        masses, weights = figure.subplots(2, 1, sharex=True)
        masses.fill_between(place + 1, mass, step="mid", color=TEACHER, alpha=0.25, linewidth=0)
        masses.step(place + 1, mass, where="mid", color=TEACHER, linewidth=1.2)
        _log_when_wide(masses, mass)
        weights.axhline(1, color=MUTED, linewidth=0.8)
        size = 4 if n_classes <= 300 else 2.5
        weights.plot(place[~clipped] + 1, weight[~clipped], "o", color=STUDENT, markersize=size, label="weight")
        if clipped.any():
            weights.plot(place[clipped] + 1, weight[clipped], "D", color=ALERT, markersize=size, label="clipped weight")
            weights.legend(frameon=False, fontsize=9, loc="upper left")
        _log_when_wide(weights, weight)
        weights.set_xlim(0, n_classes + 1)
        _dress(masses, "", "teacher's mass (images)")
        _dress(weights, "class, by decreasing teacher's mass", "weight")
    evidence = f"weights from {weight.min():.3g} to {weight.max():.3g}; " + (
        f"{int(clipped.sum()):,} of {n_classes:,} clipped" if clipped.any() else "none clipped"
    )
    if mass.min() > 0:
        times = f"{mass.max() / mass.min():,.3g}" if mass.max() < 1000 * mass.min() else "over 1,000"
        finding = f"The teacher gives “{_short(names[0])}” {times} times the mass of “{_short(names[-1])}”"
    else:
        finding = f"The teacher finds {int((mass <= 0).sum()):,} of {n_classes:,} classes nowhere in the manifest"
    _title(figure, finding, evidence)
    return figure


def plot_per_class_accuracy(metrics: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Figure:
    """Return the test accuracy of student, teacher and, where there is one, random student for each class.

    Args:
        metrics: `teacher` and `student`, perhaps `random_student`, each with `accuracy` and `per_class_accuracy`:
            K values in [0, 1], None or NaN for a class without test images.
        class_names: K names; the class numbers without them.
    """
    models = [
        (label, colour, marker, np.array(metrics[key]["per_class_accuracy"], dtype=np.float64) * 100)
        for key, label, colour, marker in (
            ("random_student", "random student", RANDOM, "s"),
            ("teacher", "teacher", TEACHER, "|"),
            ("student", "student", STUDENT, "o"),
        )
        if (metrics.get(key) or {}).get("per_class_accuracy")
    ]
    accuracy = {label: values for label, _, _, values in models}
    n_classes = len(accuracy["student"])
    names = [str(name) for name in class_names] if class_names is not None and len(class_names) == n_classes else None
    names = names or [str(index) for index in range(n_classes)]
    difference = accuracy["student"] - accuracy["teacher"]
    if n_classes <= MAX_NAMED_CLASSES:
        figure = _figure(max(2.6, 1.7 + 0.27 * n_classes))
        _dots_per_class(figure.add_subplot(), models, names)
    else:
        figure = _figure(4.6)
        accuracies, differences = figure.subplots(1, 2)
        _sorted_accuracies(accuracies, models)
        _sorted_differences(differences, difference, names)
    worst = int(np.nanargmin(difference))
    overall = 100 * (metrics["student"]["accuracy"] - metrics["teacher"]["accuracy"])
    verb = "loses {} to" if overall < 0 else "gains {} on"
    finding = f"The student {verb.format(f'{abs(overall):.1f} points')} its teacher over all test images"
    if round(overall, 1) == 0:
        finding = "The student equals its teacher over all test images"
    loss = f"largest loss in class “{_short(names[worst])}”: {points(difference[worst])}"
    _title(figure, finding, loss if difference[worst] < 0 else "no class loses")
    return figure


def plot_distillation_history(
    distillation_history: pd.DataFrame, random_distillation_history: pd.DataFrame | None = None
) -> Figure:
    """Return loss and agreement with the teacher against student updates, for both students in the same axes.

    Each student is watched on its own images (held out where there are any), so the curves show that and how fast they
    settle; only the test images compare the two.

    Args:
        distillation_history: `update`, `loss`, and `held_out_agreement` or else `training_agreement` in [0, 1].
        random_distillation_history: the same for the student distilled from random images; None or empty without one.
    """
    runs = [("student", STUDENT, distillation_history)]
    if random_distillation_history is not None and len(random_distillation_history):
        runs.insert(0, ("random student", RANDOM, random_distillation_history))
    kind = "held_out" if np.isfinite(_column(distillation_history, "held_out_agreement")).any() else "training"
    figure = _figure(4.0)
    losses, agreements = figure.subplots(1, 2, sharex=True)
    for axes, column, unit in ((losses, "loss", 1), (agreements, f"{kind}_agreement", 100)):
        _curves(
            axes, [(name, colour, run["update"].to_numpy(), unit * _column(run, column)) for name, colour, run in runs]
        )
    _log_when_wide(losses, np.concatenate([_column(run, "loss") for _, _, run in runs]))
    losses.xaxis.set_major_formatter("{x:,.0f}")
    _dress(losses, "student updates", "distillation loss")
    _dress(agreements, "student updates", f"agreement with the teacher, {kind.replace('_', '-')} (%)")
    n_updates = int(distillation_history["update"].max())
    settled = {name: _last(_column(run, f"{kind}_agreement")) for name, _, run in runs}
    if np.isfinite(settled["student"]):
        images = "held-out" if kind == "held_out" else "training"
        finding = f"Student and teacher agree on {percent(settled['student'])} of the {images} images"
        evidence = f"after {n_updates:,} updates"
        if len(runs) == 2:
            evidence += f"; the random student on {percent(settled['random student'])} of its own images"
    else:
        finding = f"Distillation loss {_last(_column(distillation_history, 'loss')):.3f} after {n_updates:,} updates"
        evidence = "agreement was not measured"
    _title(figure, finding, evidence)
    return figure


def plot_contact_sheet(
    manifest: pd.DataFrame,
    pool_scores: pd.DataFrame,
    pool_images: ImageStore,
    n_images: int,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Return the best, borderline and worst pool images with their score and the teacher's class.

    Borderline images lie nearest the cut on both of its sides; a rule without a cut shows the middle of the ranking.
    Images are ranked by the score the rule cuts on: the teacher's confidence for `confident`, else the PU score.

    Args:
        manifest: the kept images, `id` and `origin`; attrs `rule`.
        pool_scores: `id`, `pu_score`, `teacher_class`, `teacher_confidence`.
        pool_images: (n, C, H, W) uint8 by row; its index carries `id` and, where known, `relevant`.
        n_images: images in each block, >= 1.
        class_names: names of the teacher's classes; their numbers without them.
    """
    rule = manifest.attrs.get("rule")
    column = "teacher_confidence" if rule in RULES_BY_CONFIDENCE else "pu_score"
    scores = pool_scores[column].to_numpy(np.float64)
    strips = _contact_strips(scores, selection_mask(pool_scores, manifest), rule, n_images)
    shown = np.unique(np.concatenate([rows for _, _, rows in strips]))
    tiles = dict(
        zip(shown.tolist(), _tiles(pool_scores.iloc[shown], scores[shown], pool_images, class_names), strict=True)
    )
    n_lines = max(len(tile.lines) for tile in tiles.values())

    side_in, line_in, heading_in, margin_in = (WIDTH_IN - 0.2) / IMAGES_PER_ROW, 0.13, 0.36, 0.1
    row_in = side_in + n_lines * line_in + 0.04
    n_rows = sum(-(-len(rows) // IMAGES_PER_ROW) for _, _, rows in strips)
    height_in = HEADER_IN + len(strips) * (heading_in + 0.06) + n_rows * row_in
    figure = _figure(height_in, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = HEADER_IN
    for heading, colour, rows in strips:
        axes.text(margin_in, top + 0.24, heading, fontsize=9.5, color=colour, weight="bold", va="baseline")
        top += heading_in
        for place, row in enumerate(rows.tolist()):
            corner = (margin_in + place % IMAGES_PER_ROW * side_in, top + place // IMAGES_PER_ROW * row_in)
            _draw_tile(axes, tiles[row], corner, side_in - 0.08, line_in)
        top += -(-len(rows) // IMAGES_PER_ROW) * row_in + 0.06
    axes.set_xlim(0, WIDTH_IN)  # inches, so that an image stays square whatever the number of rows
    axes.set_ylim(height_in, 0)
    axes.set_aspect("auto")
    score = "score (here the teacher's confidence)" if column == "teacher_confidence" else "PU score"
    legend = f"below each image: {score}, the teacher's confidence and class" + ", the hidden truth" * (n_lines > 2)
    _title(figure, "Best, borderline and worst images of the pool", legend)
    return figure


# --- what is shared with the report -----------------------------------------------------------------------------------


def selection_mask(pool_scores: pd.DataFrame, manifest: pd.DataFrame) -> np.ndarray:
    """Return (n,) bool: which pool images the manifest keeps."""
    return pool_scores["id"].isin(manifest.loc[manifest["origin"] == "pool", "id"]).to_numpy(bool)


def relevance(pool_scores: pd.DataFrame, pool_images: ImageStore) -> np.ndarray:
    """Return (n,) float64 in the order of the scores: 1 relevant, 0 not relevant, NaN where the truth is unknown."""
    index = pool_images.index
    if not index["relevant"].notna().any():
        return np.full(len(pool_scores), np.nan)
    truth = index.set_index("id")["relevant"].astype("Float64").reindex(pool_scores["id"])
    return truth.to_numpy(dtype=np.float64, na_value=np.nan)


def score_threshold(manifest: pd.DataFrame, column: str) -> float | None:
    """Return the finite cut of the manifest's rule on that score column; None where it cuts elsewhere or not at all."""
    rule, threshold = manifest.attrs.get("rule"), manifest.attrs.get("threshold")
    cut_column = "teacher_confidence" if rule in RULES_BY_CONFIDENCE else "pu_score"
    if threshold is None or rule in RULES_WITHOUT_CUT or column != cut_column or not np.isfinite(float(threshold)):
        return None
    return float(threshold)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as text in percent; a dash where it is unknown."""
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return a difference of two percentages as text with its sign, such as "−0.8 points"; none is "0.0 points"."""
    rounded = round(float(difference), 1)
    return "0.0 points" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f} points"


def describe_prior(class_prior: Mapping[str, Any]) -> str:
    """Return the class prior with its interval and origin, as a phrase."""
    value, lower, upper = (class_prior.get(key) for key in ("value", "lower", "upper"))
    if value is None:
        return "class prior unknown"
    if lower is None or upper is None or lower == upper:
        return f"class prior {percent(value)}" + (" as given" if class_prior.get("method") == "given" else "")
    return f"class prior estimated at {percent(value)} ({100 * lower:.1f}–{100 * upper:.1f} %)"


# --- parts of figures -------------------------------------------------------------------------------------------------


def _figure(height_in: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor="white", layout=layout)
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.1, h_pad=0.08, wspace=0.03)  # type: ignore[call-arg]
        _keep_room(figure, HEADER_IN)
    return figure


def _keep_room(figure: Figure, header_in: float) -> None:
    """Have the layout leave so many inches at the top to `_title`."""
    figure.get_layout_engine().set(rect=(0.0, 0.0, 1.0, 1 - header_in / figure.get_figheight()))  # type: ignore[call-arg, union-attr]


def _dress(axes: Axes, x_label: str, y_label: str, grid: str = "y") -> None:
    """Label the axes and take away what carries no data: two spines, dark ticks, the grid across the values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9, color=MUTED)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)


def _title(figure: Figure, finding: str, evidence: str) -> None:
    """Write the finding in bold and the evidence below it, both from the left edge, into the room kept for them.

    What needs a second line makes the figure higher by it; one without a layout has a line for each.
    """
    most_lines = 1 if figure.get_layout_engine() is None else 2
    findings = textwrap.wrap(finding, 84, max_lines=most_lines, placeholder="…")
    evidences = textwrap.wrap(evidence, 112, max_lines=most_lines, placeholder="…")
    extra_in = 0.19 * (len(findings) - 1) + 0.17 * max(len(evidences) - 1, 0)
    if extra_in:
        figure.set_figheight(figure.get_figheight() + extra_in)
        _keep_room(figure, HEADER_IN + extra_in)
    top, left = 1 / figure.get_figheight(), 0.1 / WIDTH_IN
    title = figure.suptitle(
        "\n".join(findings), x=left, y=1 - 0.1 * top, ha="left", va="top", fontsize=12, weight="bold"
    )
    title.set(color=INK, in_layout=False)
    below = 1 - (0.34 + 0.19 * (len(findings) - 1)) * top
    detail = figure.text(left, below, "\n".join(evidences), ha="left", va="top", fontsize=9.5, color=MUTED)
    detail.set_in_layout(False)


def _bin_edges(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return equal bins over all scores with one edge on the threshold, so that no bin is half selected."""
    low, high = float(scores.min()), float(scores.max())
    n_bins = int(np.clip(np.sqrt(len(scores)), 10, 60))
    width = (high - low) / n_bins or 1.0
    anchor = threshold if threshold is not None else low
    first, last = np.floor((low - anchor) / width), np.floor((high - anchor) / width) + 1
    return anchor + width * np.arange(first, last + 1)


def _mark_threshold(axes: Axes, threshold: float, *, is_strict: bool) -> None:
    left, right = axes.get_xlim()
    axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.axvspan(threshold, max(right, threshold), color=STUDENT, alpha=0.07, linewidth=0)
    axes.set_xlim(min(left, threshold), max(right, threshold))
    has_room = right - threshold > 0.25 * (right - left)
    axes.annotate(
        f"F {'>' if is_strict else '≥'} {threshold:.3g} passes →".replace("-", "−"), (threshold, 0.86),
        (6 if has_room else -6, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="left" if has_room else "right", va="top", fontsize=9, color=INK,
    )  # fmt: skip


def _curves(axes: Axes, curves: Sequence[tuple[str | None, str, np.ndarray, np.ndarray]]) -> None:
    """Draw lines and name each at its end; points without a value are left out."""
    ends = []
    for name, colour, x, y in curves:
        is_known = np.isfinite(y)
        if not is_known.any():
            continue
        marker = "o" if is_known.sum() <= MAX_MARKED_POINTS else None
        axes.plot(x[is_known], y[is_known], color=colour, linewidth=1.8, marker=marker, markersize=4, label=name)
        if name is not None:
            ends.append((float(y[is_known][-1]), name, colour))
    if ends:
        axes.margins(x=0.02)
        _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write the names right of the axes at their lines' last values, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    text_in, axes_in = 0.16, 0.75 * axes.get_figure().get_figheight()  # type: ignore[union-attr]
    labels = [
        ((value - low) / (high - low), name.replace(" ", "\n", 1) if len(name) > 8 else name, colour)
        for value, name, colour in sorted(ends)
    ]
    needs = [(label.count("\n") + 1) * text_in / axes_in for _, label, _ in labels]
    heights: list[float] = []
    for (height, _, _), above, need in zip(labels, [needs[0], *needs], needs, strict=False):
        heights.append(max(height, heights[-1] + (above + need) / 2) if heights else height)
    overflow = max(0.0, heights[-1] + needs[-1] / 2 - 1.05)
    for height, (_, label, colour) in zip(heights, labels, strict=True):
        axes.annotate(
            label, (1.0, height - overflow), (5, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=9, linespacing=1.0, color=_darker(colour), annotation_clip=False,
        )  # fmt: skip


def _dots_per_class(axes: Axes, models: Sequence[tuple[str, str, str, np.ndarray]], names: Sequence[str]) -> None:
    values = np.stack([accuracies for _, _, _, accuracies in models])
    student = next(accuracies for label, _, _, accuracies in models if label == "student")
    order = np.argsort(-np.nan_to_num(student, nan=-1.0), kind="stable")
    place = np.arange(len(names))
    has_value = np.isfinite(values[:, order]).any(axis=0)
    lowest, highest = (np.full(len(names), np.nan) for _ in range(2))
    lowest[has_value] = np.nanmin(values[:, order][:, has_value], axis=0)
    highest[has_value] = np.nanmax(values[:, order][:, has_value], axis=0)
    axes.hlines(place, lowest, highest, color="#d0d0d0", linewidth=2, zorder=1)
    for label, colour, marker, accuracies in models:
        axes.plot(accuracies[order], place, marker, color=colour, label=label, clip_on=False, **_MARKS[marker])
    axes.set_yticks(place, [_short(names[index]) for index in order])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(max(0.0, 5 * np.floor((np.nanmin(values) - 1) / 5)), 100)
    _dress(axes, "test accuracy (%)", "", grid="x")
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", ncols=3, frameon=False, fontsize=9, handletextpad=0.2
    )  # fmt: skip


def _sorted_accuracies(axes: Axes, models: Sequence[tuple[str, str, str, np.ndarray]]) -> None:
    """Draw each model's quantile curve: its K accuracies, sorted on their own."""
    for label, colour, _, accuracies in models:
        ranked = np.sort(accuracies[np.isfinite(accuracies)])
        share = 100 * (np.arange(len(ranked)) + 0.5) / len(ranked)
        axes.plot(share, ranked, color=colour, linewidth=1.8, label=label)
    axes.set_xlim(0, 100)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", frameon=False, fontsize=9)
    _dress(axes, "classes, each model's own order (%)", "test accuracy of the class (%)")


def _sorted_differences(axes: Axes, difference: np.ndarray, names: Sequence[str]) -> None:
    """Draw student minus teacher for every class, sorted, and name the three that lost most."""
    known = np.flatnonzero(np.isfinite(difference))
    order = known[np.argsort(difference[known], kind="stable")]
    rank = np.arange(1, len(order) + 1)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.fill_between(rank, difference[order], step="mid", color=STUDENT, alpha=0.2, linewidth=0)
    axes.step(rank, difference[order], where="mid", color=STUDENT, linewidth=1.5)
    median = float(np.median(difference[order]))
    most = [f"“{_short(names[index])}” {points(difference[index])}" for index in order[:3]]
    n_losing = int((difference[order] < 0).sum())
    note = "\n".join([f"median {points(median)}; {n_losing:,} of {len(order):,} lose", "most:", *most])
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5, color=INK)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.1 * (high - low), high)
    axes.set_xlim(0, len(order) + 1)
    _dress(axes, "class, by difference", "student minus teacher (points)")


def _contact_strips(
    scores: np.ndarray, is_selected: np.ndarray, rule: str | None, n_images: int
) -> list[tuple[str, str, np.ndarray]]:
    """Return heading, colour and score rows of each strip of the contact sheet."""
    rows = np.flatnonzero(np.isfinite(scores))
    best, worst = _extreme(rows, scores, n_images, highest=True), _extreme(rows, scores, n_images, highest=False)[::-1]
    strips = [("Best: the highest scores", INK, best)]
    if rule in RULES_WITHOUT_CUT:
        middle = rows[np.argsort(np.abs(scores[rows] - np.median(scores[rows])), kind="stable")[:n_images]]
        middle = middle[np.argsort(-scores[middle], kind="stable")]
        strips.append(("Middle of the ranking (this rule has no cut)", INK, middle))
    else:
        kept, left = rows[is_selected[rows]], rows[~is_selected[rows]]
        n_kept = (n_images + 1) // 2
        last = _extreme(kept, scores, n_kept, highest=False)[::-1]
        first = _extreme(left, scores, max(1, n_images - n_kept), highest=True)
        strips.append(("Borderline: the last that were selected", STUDENT, last))
        strips.append(("Borderline: the first that were left out", DARK_ALERT, first))
    strips.append(("Worst: the lowest scores", INK, worst))
    return [strip for strip in strips if len(strip[2])]


def _extreme(rows: np.ndarray, scores: np.ndarray, n: int, *, highest: bool) -> np.ndarray:
    """Return the n rows with the most extreme scores, most extreme first, without sorting a million others."""
    key = -scores[rows] if highest else scores[rows]
    if len(rows) > n:
        nearest = np.argpartition(key, n - 1)[:n]
        rows, key = rows[nearest], key[nearest]
    return rows[np.argsort(key, kind="stable")]


@dataclass(frozen=True)
class _Tile:
    """One image of the contact sheet, the teacher's confidence, and the lines below it: text, colour, weight."""

    image: np.ndarray
    confidence: str
    lines: list[tuple[str, str, str]]


def _tiles(
    table: pd.DataFrame, scores: np.ndarray, pool_images: ImageStore, class_names: Sequence[str] | None
) -> list[_Tile]:
    """Return one tile a row of the table; only these images are read."""
    index = pool_images.index
    rows = np.flatnonzero(index["id"].isin(table["id"]).to_numpy())
    ids = index["id"].iloc[rows].tolist()
    images = dict(zip(ids, pool_images.read(rows.astype(np.int64)), strict=True))
    known = index["relevant"].iloc[rows]
    truth = dict(zip(ids, known.astype(object).where(known.notna(), None), strict=True))
    has_truth = bool(index["relevant"].notna().any())
    tiles = []
    facts = zip(table["id"], scores, table["teacher_class"], table["teacher_confidence"], strict=True)
    for identifier, score, teacher_class, confidence in facts:
        lines = [
            (f"{score:.2f}".replace("-", "−"), INK, "bold"),
            (_short(_class_name(teacher_class, class_names), 13), MUTED, "normal"),
        ]
        if has_truth:
            lines.append(_truth_line(truth[identifier]))
        tiles.append(_Tile(images[identifier], percent(confidence, 0), lines))
    return tiles


def _draw_tile(axes: Axes, tile: _Tile, corner: tuple[float, float], side: float, line_in: float) -> None:
    """Draw a (C, H, W) uint8 image into a square below the corner, keeping its shape, and its lines below it."""
    left, top = corner
    _, height, width = tile.image.shape
    box_width, box_height = side * width / max(height, width), side * height / max(height, width)
    x, y = left + (side - box_width) / 2, top + (side - box_height) / 2
    picture = tile.image[0] if tile.image.shape[0] == 1 else np.moveaxis(tile.image[:3], 0, -1)
    axes.imshow(
        picture, extent=(x, x + box_width, y + box_height, y), cmap="gray", vmin=0, vmax=255,
        interpolation="nearest" if max(height, width) <= SMALL_IMAGE_PX else "antialiased",
    )  # fmt: skip
    axes.text(left + side, top + side + 1.05 * line_in, tile.confidence, fontsize=7, color=MUTED, ha="right")
    for place, (text, colour, weight) in enumerate(tile.lines):
        size = 7.5 if place == 0 else 7
        axes.text(left, top + side + (place + 1.05) * line_in, text, fontsize=size, color=colour, weight=weight)


def _truth_line(relevant: bool | None) -> tuple[str, str, str]:
    if relevant is None:
        return "unknown", MUTED, "normal"
    return ("relevant", _darker(RELEVANT), "normal") if relevant else ("not relevant", DARK_ALERT, "normal")


def _class_name(teacher_class: Any, class_names: Sequence[str] | None) -> str:
    index = int(teacher_class)
    return str(class_names[index]) if class_names is not None and 0 <= index < len(class_names) else str(index)


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, all NaN where the table lacks it."""
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _short(name: str, n_characters: int = 22) -> str:
    return name if len(name) <= n_characters else name[: n_characters - 1] + "…"


def _darker(colour: str) -> str:
    """Return the colour at 70 % of its brightness, readable as text on white."""
    return "#" + "".join(f"{int(int(colour[start : start + 2], 16) * 0.7):02x}" for start in (1, 3, 5))


def _log_when_wide(axes: Axes, values: np.ndarray) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and (values[np.isfinite(values)] > 0).all() and positive.max() > 30 * positive.min():
        axes.set_yscale("log")


def _integer_epochs(axes: Axes, epoch: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if len(epoch) == 1:
        axes.set_xlim(epoch[0] - 1, epoch[0] + 1)
