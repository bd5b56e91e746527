"""What a search for a student found: sentences, tables, the Pareto plot and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pu_kd_pipeline.reporting.html import render_page
from pu_kd_pipeline.reporting.pilot_page import failure_sentences, round_rows
from pu_kd_pipeline.reporting.sections.line_chart import Line, LineChart, Scale, line_chart
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

_LIMIT_TITLES = {
    "latency_ms": ("latency of one image", "ms"),
    "size_mb": ("size of the weights", "MB"),
    "mflops": ("FLOPs of one image", "MFLOPs"),
}
_MEGA = 1e6
_FEW_MEASURED = 200


def render_student_search(found: Mapping[str, Any], parameters: str, command: str) -> str:
    """Return the page as HTML.

    Args:
        found: result of `pilot.student_search.judge_trials`.
        parameters: those of the winner, as YAML; empty where it is the student of the run.
        command: that runs the pipeline with them.
    """
    return render_page(
        "student_search.html.jinja",
        title="A student for a budget",
        findings=search_sentences(found),
        warnings=search_limits(found),
        chart=students_chart(found),
        n_measured=found["yardstick"]["n_images"],
        parameters=parameters,
        command=command,
        students=_student_rows(found),
        rounds=round_rows(found["trials"]),
        hardware=found["hardware"],
    )


def search_sentences(found: Mapping[str, Any]) -> list[str]:
    """Return what a search found, the winner first."""
    winner = found["winner"]
    costs = found["costs"][winner]
    measured = _last_trials(found["trials"])[winner]["agreement"]
    sentences = [
        f"{winner} is the student to train: {costs['latency_ms']:.3g} ms an image, "
        f"{costs['size_bytes'] / _MEGA:.3g} MB, {costs['flops'] / _MEGA:.3g} MFLOPs.",
        f"After a short training it gives the teacher's class in {percent(measured['value'])} of "
        f"the cases ({percent(measured['lower'])} to {percent(measured['upper'])}).",
    ]
    present = found["present"]
    if winner == present:
        if found["closest"] == present:
            sentences.append("It is the student that the parameters already have.")
        else:
            sentences.append(
                f"It is the student that the parameters already have: {found['closest']} came "
                "closer to the teacher, but not surely."
            )
    elif found["difference_to_present"] is not None:
        trials = _last_trials(found["trials"])
        sentences.append(
            f"Its divergence from the teacher is {trials[winner]['kl']:.3g} nats, that of the "
            f"present student {trials[present]['kl']:.3g}."
        )
    limits = ", ".join(
        f"{_LIMIT_TITLES[name][0]} at most {limit:g} {_LIMIT_TITLES[name][1]}"
        for name, limit in found["limits"].items()
    )
    n_keeping = sum(student["keeps_limits"] for student in found["students"])
    sentences.append(
        f"Asked for: {limits}. {n_keeping} of {len(found['students'])} students keep it."
    )
    return sentences


def search_limits(found: Mapping[str, Any]) -> list[str]:
    """Return what makes the result less certain."""
    limits = []
    if found["note"]:
        limits.append(found["note"])
    if not found["present_keeps_limits"]:
        limits.append("The present student does not keep the limits; it is trained to compare.")
    n_measured = found["yardstick"]["n_images"]
    if n_measured < _FEW_MEASURED:
        limits.append(
            f"Students were measured on {n_measured} images: those of similar size cannot be "
            "distinguished. A larger max_pool_images or yardstick_share gives more."
        )
    limits.append(
        "Larger students gain more from a long training than short trainings show: of two that are "
        "as good here, train the larger one."
    )
    if found["n_sampled"] < found["n_pool"]:
        limits.append(f"The search read {found['n_sampled']:,} of {found['n_pool']:,} pool images.")
    return limits + failure_sentences(found["trials"])


def _last_trials(trials: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the last trial of each student that has one."""
    return {trial["candidate"]: trial for trial in trials if trial["agreement"] is not None}


def _student_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and a row per student, the fastest first, after the teacher."""
    rows = [["", "latency, ms", "weights, MB", "MFLOPs", "parameters", "keeps the limits"]]
    rows.append([*_cost_cells("teacher", found["costs"]["teacher"]), UNKNOWN])
    measured = [student for student in found["students"] if student["costs"] is not None]
    for student in sorted(measured, key=lambda student: student["costs"]["latency_ms"]):
        keeps = "no"
        if student["keeps_limits"]:
            keeps = "yes, trained" if student["is_trained"] else "yes"
        rows.append([*_cost_cells(student["name"], student["costs"]), keeps])
    for student in found["students"]:
        if student["refused"]:
            rows.append([student["name"], *[UNKNOWN] * 4, "cannot read the images"])
    return rows


def _cost_cells(name: str, costs: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{costs['latency_ms']:.3g}",
        f"{costs['size_bytes'] / _MEGA:.3g}",
        f"{costs['flops'] / _MEGA:.3g}",
        f"{costs['parameters']:,}",
    ]


def students_chart(found: Mapping[str, Any]) -> LineChart | None:
    """Return divergence over latency: the first round, which all students are in, and the last.

    The line joins the students of the first round that are closer to the teacher than all faster
    ones.
    """
    by_round: dict[int, list[Mapping[str, Any]]] = {}
    for trial in found["trials"]:
        if trial["kl"] is not None:
            by_round.setdefault(trial["round"], []).append(trial)
    first, last = min(by_round), max(by_round)
    places = {
        number: [_place(found, trial) for trial in by_round[number]] for number in (first, last)
    }
    lengths = {number: f"after {by_round[number][0]['n_updates']:,} updates" for number in places}
    winner = _last_trials(found["trials"])[found["winner"]]
    lines = [
        _points("best for its latency", "muted-line", _front(places[first]), ""),
        _points(lengths[first], "muted-line", places[first], "points hollow"),
    ]
    if last != first:
        lines.append(_points(lengths[last], "student", places[last], "points"))
    name = f"{found['winner']}, the student to train"
    lines.append(_points(name, "alert", [_place(found, winner)], "points", radius=5.0))
    if "latency_ms" in found["limits"]:
        divergences = [divergence for each in places.values() for _, divergence in each]
        limit = float(found["limits"]["latency_ms"])
        line = [(limit, min(divergences)), (limit, max(divergences))]
        lines.insert(0, _points("limit of latency", "teacher", line, "dashed", radius=0.0))
    scale = Scale(is_log=True)
    return line_chart(
        "divergence from the teacher, nats; lower is closer",
        "latency of one image, ms",
        lines,
        x_scale=scale,
        y_scale=scale,
        height=260,
    )


def _points(
    name: str,
    role: str,
    places: Sequence[tuple[float, float]],
    style: str,
    *,
    radius: float = 3.0,
) -> Line:
    x, y = np.array(places, dtype=np.float64).T
    return Line(name, role, x, y, style, np.full(len(x), radius), shows_last=False)


def _place(found: Mapping[str, Any], trial: Mapping[str, Any]) -> tuple[float, float]:
    latency = found["costs"][trial["candidate"]]["latency_ms"]
    return latency, trial["kl"]


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that are lower than all faster ones, from fast to slow."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
