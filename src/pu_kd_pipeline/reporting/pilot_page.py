"""What a pilot found: sentences, tables, curves and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pu_kd_pipeline.progress import duration_text
from pu_kd_pipeline.reporting.html import render_page
from pu_kd_pipeline.reporting.sections.line_chart import Line, LineChart, Scale, line_chart
from pu_kd_pipeline.reporting.style import UNKNOWN, percent, points

CONTROL_NAMES = {
    "random": "random images, each shown about 50 times",
    "whole_pool": "the whole pool, drawn evenly",
    "oracle": "oracle: the truly related images",
}
_CONTROL_ROLES = {"random": "random", "whole_pool": "other", "oracle": "relevant"}
_FEW_MEASURED = 200
_MEGABYTE = 1e6
_GIGABYTE = 1e9


def render_pilot(pilot: Mapping[str, Any], parameters: str, command: str) -> str:
    """Return the page as HTML.

    Args:
        pilot: result of `pilot.study.judge_trials`.
        parameters: those that it recommends, as YAML.
        command: that runs the pipeline with them.
    """
    return render_page(
        "pilot.html.jinja",
        title="Pilot",
        findings=pilot_sentences(pilot),
        warnings=pilot_limits(pilot),
        tiles=_tiles(pilot),
        chart=pilot_chart(pilot),
        n_measured=pilot["yardstick"]["n_images"],
        parameters=parameters,
        command=command,
        rounds=round_rows(pilot["trials"]),
        costs=cost_rows(pilot["forecast"]),
        paces=_pace_rows(pilot),
        hardware=pilot["hardware"],
    )


def pilot_sentences(pilot: Mapping[str, Any]) -> list[str]:
    """Return what a pilot found, the verdict first."""
    judgment = pilot["judgment"]
    sentences = [_verdict_sentence(judgment), _leader_sentence(judgment, pilot["present"])]
    headroom = judgment["headroom"]
    if headroom is not None:
        found = headroom["measured"]
        sentences.append(
            f"The truly related images gained {_points_of(found)} over random ones: what choosing "
            "by relatedness alone can gain after such short trainings."
        )
    agreement = judgment["agreement"]
    sentences.append(
        f"With the recommended parameters and {judgment['n_updates']:,} updates, the student is "
        f"expected to give the teacher's class in {percent(agreement['value'])} of the cases "
        f"({percent(agreement['lower'])} to {percent(agreement['upper'])}), on images like the "
        f"{pilot['yardstick']['n_images']:,} that were measured."
    )
    forecast = pilot["forecast"]
    sentences.append(
        f"A full run takes {_full_time(forecast)} on this machine, "
        f"{_size_text(forecast['memory_bytes'])} of memory, and "
        f"{_size_text(forecast['disk_bytes'])} of disk for features and scores."
    )
    return sentences


def pilot_limits(pilot: Mapping[str, Any]) -> list[str]:
    """Return what makes a pilot's numbers less certain than their intervals say."""
    judgment = pilot["judgment"]
    costs = pilot["costs"]
    limits = []
    if pilot["note"]:
        limits.append(pilot["note"])
    n_measured = pilot["yardstick"]["n_images"]
    if n_measured < _FEW_MEASURED:
        limits.append(
            f"Students were measured on {n_measured} images: differences of a few points cannot be "
            "seen. A larger max_pool_images or yardstick_share gives more."
        )
    if costs["n_sampled"] < costs["n_pool"]:
        limits.append(
            f"The pilot read {costs['n_sampled']:,} of {costs['n_pool']:,} pool images. The whole "
            "pool has more variety, which a long training gains from."
        )
    if judgment["n_updates"] > judgment["longest_trial"]:
        limits.append(
            f"The longest training had {judgment['longest_trial']:,} of {judgment['n_updates']:,} "
            "updates. Rules that keep few images lose as training gets longer, and strong mixing "
            "(CutMix) gains."
        )
    if judgment["n_rounds"] == 1 and judgment["n_updates"] > judgment["longest_trial"]:
        limits.append(
            "There is one round only, and no learning curve: nothing is known of longer trainings."
        )
    if pilot["forecast"]["unknown"]:
        nodes = ", ".join(pilot["forecast"]["unknown"])
        limits.append(
            f"The time of a full run is without {nodes}, which the pilot did not measure."
        )
    return limits + failure_sentences(pilot["trials"])


def failure_sentences(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which trainings gave no student, and why."""
    return [
        f"{trial['candidate']} has no student in round {trial['round']}: {trial['failure']}"
        for trial in trials
        if trial["failure"]
    ]


def _full_time(forecast: Mapping[str, Any]) -> str:
    about = "at least" if forecast["unknown"] else "about"
    return f"{about} {duration_text(forecast['total_seconds'])}"


def _verdict_sentence(judgment: Mapping[str, Any]) -> str:
    control = judgment["limiting_control"]
    if control is None:
        return "The pilot cannot tell what choosing images is worth: no control has a student."
    forecast = judgment["gains"][control]["forecast"]
    against = CONTROL_NAMES[control]
    n_updates = f"{judgment['n_updates']:,} updates"
    interval = _interval_text(forecast)
    if judgment["verdict"] == "gain":
        return (
            f"Choosing images by {judgment['leader']} is worth {interval} of agreement here after "
            f"{n_updates}, over {against}."
        )
    if judgment["verdict"] == "nothing":
        return (
            f"There is nothing to gain from choosing images here: after {n_updates} it is worth "
            f"{interval}, over {against}."
        )
    return (
        f"The pilot cannot tell whether choosing images pays here: after {n_updates} it is worth "
        f"{interval}, over {against}. More minutes or more images may tell."
    )


def _leader_sentence(judgment: Mapping[str, Any], present: str) -> str:
    """Return which candidate leads, and which one is recommended."""
    sentence = _comparison_sentence(judgment)
    recommended = judgment["recommended"]
    if judgment.get("lead_fades"):
        sentence += (
            f" Its lead over {present} shrank in the last round; continued, it is gone after "
            f"{judgment['n_updates']:,} updates."
        )
    if recommended == present:
        return f"{sentence} Recommended are the present parameters ({present})."
    return f"{sentence} Recommended: {CONTROL_NAMES.get(recommended, recommended)}."


def _comparison_sentence(judgment: Mapping[str, Any]) -> str:
    leader = f"{judgment['leader']} leads"
    rivals = judgment["rivals"]
    # One round shows too little: those who left after it are not mentioned.
    closer = [rival["candidate"] for rival in rivals if rival["is_distinguished"]]
    unsure = [
        rival["candidate"]
        for rival in rivals
        if not rival["is_distinguished"] and rival["round"] > 1
    ]
    if closer:
        leader += f", surely closer to the teacher than {', '.join(closer)}"
    if unsure:
        leader += f"; the pilot cannot tell it apart from {', '.join(unsure)}"
    return f"{leader}."


def _points_of(difference: Mapping[str, float]) -> str:
    return f"{points(100 * difference['value'])} (95 %: {_interval_text(difference)})"


def _interval_text(difference: Mapping[str, float]) -> str:
    """Return an interval such as "−0.8 to +2.1 points"."""
    lower = points(100 * difference["lower"]).removesuffix(" points")
    return f"{lower} to {points(100 * difference['upper'])}"


def _size_text(n_bytes: float) -> str:
    if n_bytes < _GIGABYTE:
        return f"{n_bytes / _MEGABYTE:,.0f} MB"
    return f"{n_bytes / _GIGABYTE:,.1f} GB"


def _tiles(pilot: Mapping[str, Any]) -> list[dict[str, str]]:
    judgment = pilot["judgment"]
    agreement = judgment["agreement"]
    tiles = [
        {
            "name": "agreement to expect",
            "value": f"{percent(agreement['lower'], 0)} – {percent(agreement['upper'], 0)}",
            "role": "student",
        },
        {
            "name": "time of a full run",
            "value": duration_text(pilot["forecast"]["total_seconds"]),
            "role": "teacher",
        },
    ]
    control = judgment["limiting_control"]
    if control is not None:
        measured = judgment["gains"][control]["measured"]
        tiles.insert(
            1,
            {
                "name": f"gain after {judgment['longest_trial']:,} updates",
                "value": points(100 * measured["value"]),
                "role": "random",
            },
        )
    return tiles


def round_rows(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a title and a table for each round, the last one first."""
    by_round: dict[int, list[Mapping[str, Any]]] = {}
    for trial in trials:
        by_round.setdefault(trial["round"], []).append(trial)
    return [
        {
            "title": f"Round {number}, {of_round[0]['n_updates']:,} updates",
            "rows": _trial_rows(of_round),
        }
        for number, of_round in sorted(by_round.items(), reverse=True)
    ]


def _trial_rows(trials: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["", "pool images", "agreement (95 %)", "KL, nats", "time"]]
    # Failures have no divergence, and stand last.
    ordered = sorted(trials, key=lambda trial: (trial["kl"] is None, trial["kl"] or 0.0))
    for trial in ordered:
        name = CONTROL_NAMES.get(trial["candidate"], trial["candidate"])
        if trial["agreement"] is None:
            rows.append([name, UNKNOWN, UNKNOWN, UNKNOWN, duration_text(trial["seconds"])])
            continue
        share = trial["agreement"]
        interval = f"{100 * share['lower']:.1f} to {100 * share['upper']:.1f}"
        rows.append(
            [
                name,
                f"{trial['n_pool_images']:,}",
                f"{percent(share['value'])} ({interval})",
                f"{trial['kl']:.4f}",
                duration_text(trial["seconds"]),
            ]
        )
    return rows


def cost_rows(forecast: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and a row per long stage of a full run."""
    rows = [["node", "time"]]
    rows += [[node, duration_text(seconds)] for node, seconds in forecast["seconds"].items()]
    rows.append(["together", duration_text(forecast["total_seconds"])])
    return rows


def _pace_rows(pilot: Mapping[str, Any]) -> list[tuple[str, str]]:
    costs = pilot["costs"]
    busy = pilot["cpu_seconds"] / max(pilot["seconds"], 1e-9)
    rows = [
        ("images per second: reading", f"{1 / max(costs['reading'], 1e-9):,.0f}"),
        ("images per second: reading and teacher", f"{1 / max(costs['teacher'], 1e-9):,.0f}"),
        ("updates of the student per second", f"{1 / max(costs['step'], 1e-9):,.1f}"),
        ("time of the pilot", f"{duration_text(pilot['seconds'])}, of {pilot['minutes']:g} min"),
        ("busy processor cores, on average", f"{busy:.1f}"),
        *_beside_each_other(pilot),
        ("most memory", _size_text(costs["peak_bytes"])),
        ("pool images in the pilot", f"{costs['n_sampled']:,} of {costs['n_pool']:,}"),
        ("measured on", f"{pilot['yardstick']['n_images']:,} images"),
    ]
    return rows


def _beside_each_other(pilot: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the times of trials depend on, where trainings ran next to each other."""
    n_trainings = pilot.get("trainings_at_a_time", 1)
    if n_trainings == 1:
        return []
    note = f"{n_trainings}; the paces above were measured before the trainings"
    return [("trainings at a time", note)]


def pilot_chart(pilot: Mapping[str, Any]) -> LineChart | None:
    """Return agreement over the number of updates, by candidate, and the forecast."""
    judgment = pilot["judgment"]
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for trial in pilot["trials"]:
        if trial["agreement"] is not None:
            curves.setdefault(trial["candidate"], []).append(trial)
    lines = [_curve(name, trials, judgment["leader"]) for name, trials in curves.items()]
    # On top of the others.
    lines.sort(key=lambda line: line.name == judgment["leader"])
    agreement = judgment["agreement"]
    lower, center, upper = (np.array([100 * agreement[key]]) for key in ("lower", "value", "upper"))
    n_updates = np.array([float(judgment["n_updates"])])
    role = _CONTROL_ROLES.get(judgment["recommended"], "student")
    forecast = f"forecast: {judgment['recommended']}"
    lines.append(Line(forecast, role, n_updates, center, "points", np.array([5.0]), (lower, upper)))
    lengths = sorted({trial["n_updates"] for trial in pilot["trials"]} | {judgment["n_updates"]})
    ticks = [(float(length), f"{length:,}") for length in lengths]
    return line_chart(
        "agreement (%): student and teacher give the same class",
        "updates; each point is a training of its own",
        lines,
        x_scale=Scale(is_log=True, ticks=ticks),
        height=260,
    )


def _curve(name: str, trials: Sequence[Mapping[str, Any]], leader: str) -> Line:
    is_control = name in _CONTROL_ROLES
    role = _CONTROL_ROLES.get(name, "student" if name == leader else "muted-line")
    style = "" if is_control or name == leader else "dotted"
    lengths = np.array([trial["n_updates"] for trial in trials], dtype=np.float64)
    shares = np.array([100 * trial["agreement"]["value"] for trial in trials], dtype=np.float64)
    return Line(name, role, lengths, shares, style)
