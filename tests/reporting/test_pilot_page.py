"""The sentences and tables of pilots."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from pu_kd_pipeline.reporting.pilot_page import (
    pilot_chart,
    pilot_limits,
    pilot_sentences,
    render_pilot,
    round_rows,
)

SHARE = {"value": 0.62, "lower": 0.55, "upper": 0.7}


def trial(candidate: str, number: int, **changes: Any) -> dict[str, Any]:
    facts = {
        "candidate": candidate,
        "is_control": candidate in ("random", "whole_pool", "oracle"),
        "round": number,
        "n_updates": 100 * number,
        "seconds": 100.0,
        "n_pool_images": 1200,
        "failure": None,
        "agreement": SHARE,
        "kl": 0.5,
    }
    return {**facts, **changes}


def difference(value: float) -> dict[str, float]:
    return {"value": value, "lower": value - 0.05, "upper": value + 0.05}


def pilot_of(verdict: str, gain: float = 0.1, **changes: Any) -> dict[str, Any]:
    found = {
        "present": "mixture",
        "yardstick": {"n_images": 400},
        "note": None,
        "minutes": 10.0,
        "seconds": 500.0,
        "cpu_seconds": 900.0,
        "hardware": "a processor",
        "costs": {
            "n_pool": 9000,
            "n_sampled": 9000,
            "reading": 0.001,
            "teacher": 0.01,
            "step": 0.02,
            "peak_bytes": 2_000_000_000,
        },
        "trials": [
            trial(name, number) for number in (1, 2) for name in ("mixture", "random", "whole_pool")
        ],
        "judgment": {
            "leader": "mixture",
            "verdict": verdict,
            "limiting_control": "whole_pool",
            "recommended": "whole_pool" if verdict == "nothing" else "mixture",
            "gains": {
                "random": {"measured": difference(0.2), "forecast": difference(0.2)},
                "whole_pool": {"measured": difference(gain), "forecast": difference(gain)},
            },
            "headroom": None,
            "agreement": SHARE,
            "rivals": [],
            "n_updates": 200,
            "longest_trial": 200,
            "n_rounds": 2,
        },
        "parameters": {},
        "forecast": {
            "seconds": {"distillation.distill_student": 400.0},
            "total_seconds": 400.0,
            "memory_bytes": 3_000_000_000,
            "disk_bytes": 20_000_000,
            "unknown": [],
        },
    }
    return {**found, **changes}


@pytest.mark.parametrize(
    ("verdict", "gain", "sentence"),
    [
        (
            "gain",
            0.1,
            "Choosing images by mixture is worth +5.0 to +15.0 points of agreement here after 200",
        ),
        ("nothing", -0.1, "There is nothing to gain from choosing images here: after 200 updates"),
        ("unknown", 0.01, "cannot tell whether choosing images pays here"),
    ],
)
def test_the_verdict_comes_first_and_names_its_control(verdict, gain, sentence):
    first = pilot_sentences(pilot_of(verdict, gain))[0]
    assert sentence in first
    assert "the whole pool, drawn evenly" in first


def test_costs_are_in_units_that_people_read():
    text = " ".join(pilot_sentences(pilot_of("gain")))
    assert "about 6 min 40 s on this machine, 3.0 GB of memory, and 20 MB of disk" in text


def test_the_leader_is_distinguished_or_not():
    found = pilot_of("gain")
    rivals = [
        {"candidate": "nnpu", "is_distinguished": True, "round": 2},
        {"candidate": "confident", "is_distinguished": False, "round": 2},
        {"candidate": "retrieved", "is_distinguished": False, "round": 1},
    ]
    found["judgment"]["rivals"] = rivals
    sentence = pilot_sentences(found)[1]
    assert "mixture leads, surely closer to the teacher than nnpu" in sentence
    assert "cannot tell it apart from confident." in sentence
    assert "retrieved" not in sentence


def test_limits_are_named_where_they_hold():
    assert pilot_limits(pilot_of("gain")) == []
    found = deepcopy(pilot_of("gain", note="The time was over after 2 of 3 rounds."))
    found["yardstick"]["n_images"] = 60
    found["costs"]["n_sampled"] = 1000
    found["judgment"]["n_updates"] = 5000
    found["trials"].append(trial("nnpu", 1, failure="it selects nothing", agreement=None, kl=None))
    text = "\n".join(pilot_limits(found))
    for part in (
        "after 2 of 3 rounds",
        "measured on 60 images",
        "1,000 of 9,000 pool images",
        "200 of 5,000",
        "nnpu has no student in round 1: it selects nothing",
    ):
        assert part in text


def test_rounds_are_shown_from_the_last_one_with_failures_at_the_end():
    trials = [
        trial("nnpu", 1, failure="it selects nothing", agreement=None, kl=None),
        trial("mixture", 1, kl=0.1),
        trial("random", 1, kl=0.4),
        trial("mixture", 2),
    ]
    rounds = round_rows(trials)
    assert [one["title"] for one in rounds] == ["Round 2, 200 updates", "Round 1, 100 updates"]
    names = [row[0] for row in rounds[1]["rows"][1:]]
    assert names == ["mixture", "random images, each shown about 50 times", "nnpu"]


def test_a_page_has_no_markup_of_names():
    found = pilot_of("gain")
    found["trials"][0]["candidate"] = "<b>x</b>"
    page = render_pilot(found, "a: 1\n", "kedro run")
    assert "<b>x</b>" not in page
    assert "kedro run" in page


def test_curves_and_forecast_are_drawn():
    chart = pilot_chart(pilot_of("gain"))
    assert chart is not None
    names = [path.name for path in chart.paths]
    assert names == ["random", "whole_pool", "mixture", "forecast: mixture"]
    assert [tick.text for tick in chart.x_ticks] == ["100", "200"]
    [bar] = chart.paths[-1].bars
    [dot] = chart.paths[-1].dots
    # Upwards is less in a drawing.
    assert bar.y2 < dot.y < bar.y1
