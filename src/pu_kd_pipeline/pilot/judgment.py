"""What the trials of a pilot show: which candidate leads, what it gains, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pu_kd_pipeline.learning.learning_curves import (
    FittedLine,
    LearningCurve,
    fit_line,
    forecast_difference,
    forecast_share,
    training_noise,
)
from pu_kd_pipeline.learning.paired import SIGNIFICANT, paired_difference
from pu_kd_pipeline.learning.proportions import LEVEL, clopper_pearson_interval
from pu_kd_pipeline.params.comparison import ComparisonVariant
from pu_kd_pipeline.params.pilot import ORACLE, RANDOM, WHOLE_POOL
from pu_kd_pipeline.pilot.halving import Trial

# What a pilot can say about choosing images.
GAIN = "gain"
NOTHING = "nothing"
UNKNOWN = "unknown"

_FEWEST_ROUNDS = 2  # that show which of two candidates is closer to the teacher

_SELECTION = "subset_materialization"
_BLOCKS = ("pu_training", _SELECTION, "class_weighting", "distillation")
RULES_OF_CONTROLS = {RANDOM: "random", WHOLE_POOL: "all"}


class Judgment:
    """Reads the trials of a pilot.

    Args:
        trials: of all rounds; at least one candidate has a student in the last round.
        present: the candidate with the parameters of the run.
        n_updates: of a full training.
        least_gain: a gain below it is none.
    """

    def __init__(
        self, trials: Sequence[Trial], present: str, n_updates: int, least_gain: float
    ) -> None:
        self._trials = [trial for trial in trials if trial.failure is None]
        self._present = present
        self._n_updates = n_updates
        self._least_gain = least_gain
        self._last_round = max(trial.round for trial in self._trials if not trial.is_control)
        of_last = [trial for trial in self._trials if trial.round == self._last_round]
        self._of_last = {trial.candidate: trial for trial in of_last}
        candidates = [trial for trial in of_last if not trial.is_control]
        self.leader = min(candidates, key=lambda trial: trial.kl).candidate
        self._lines = self._fit()
        self._noise = training_noise(list(self._lines.values()))

    def facts(self) -> dict[str, Any]:
        """Return what the trials show, as JSON can hold it."""
        gains = self._gains()
        verdict, limiting = self._verdict(gains)
        followed = self._recommended()
        # A choice that brings the student closer stays, even if it changes hardly any class.
        if verdict == NOTHING and limiting and not surely_closer(self._trials, followed, limiting):
            followed = limiting
        return {
            "leader": self.leader,
            "verdict": verdict,
            "limiting_control": limiting,
            "recommended": followed,
            "lead_fades": self._lead_fades(),
            "gains": gains,
            "headroom": self._headroom(),
            "agreement": self._share_forecast(followed),
            "rivals": self._rivals(),
            "training_noise": self._noise.deviation,
            "n_updates": self._n_updates,
            "longest_trial": self._of_last[self.leader].n_updates,
            "n_rounds": self._last_round,
        }

    def _fit(self) -> dict[str, FittedLine]:
        by_name: dict[str, list[Trial]] = {}
        for trial in self._trials:
            by_name.setdefault(trial.candidate, []).append(trial)
        return {name: fit_line(_curve(trials)) for name, trials in by_name.items()}

    def _gains(self) -> dict[str, Any]:
        """Return the gain of the leader over each control of the last round."""
        gains = {}
        for control in RULES_OF_CONTROLS:
            if control in self._of_last:
                gains[control] = self._difference(self.leader, control)
        return gains

    def _headroom(self) -> dict[str, Any] | None:
        """Return what the oracle gains over random images; None where the truth is not known."""
        if ORACLE not in self._of_last or RANDOM not in self._of_last:
            return None
        return self._difference(ORACLE, RANDOM)

    def _difference(self, first: str, second: str) -> dict[str, Any]:
        trial = self._of_last[first]
        measured = paired_difference(trial.is_equal, self._of_last[second].is_equal)
        forecast = forecast_difference(
            self._lines[first],
            self._lines[second],
            self._noise,
            measured,
            max(self._n_updates, trial.n_updates),
        )
        return {
            "measured": {
                "value": measured.difference,
                "lower": measured.lower,
                "upper": measured.upper,
            },
            "forecast": forecast._asdict(),
        }

    def _verdict(self, gains: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return what can be said about the gain, and the control that limits it."""
        if not gains:
            return UNKNOWN, None
        forecasts = {name: gain["forecast"] for name, gain in gains.items()}
        limiting = min(forecasts, key=lambda name: forecasts[name]["value"])
        if all(forecast["lower"] > 0 for forecast in forecasts.values()):
            return GAIN, limiting
        if forecasts[limiting]["upper"] < self._least_gain:
            return NOTHING, limiting
        return UNKNOWN, limiting

    def _recommended(self) -> str:
        """Return the leader, or the present candidate where the leader is not surely closer.

        Nor does a leader count whose lead would be gone after a full training.
        """
        # It may have failed in the end, after shorter trainings that went well.
        if self._present not in self._of_last:
            return self.leader
        is_closer = surely_closer(self._trials, self.leader, self._present)
        return self.leader if is_closer and not self._lead_fades() else self._present

    def _lead_fades(self) -> bool:
        """Return whether the leader's lead over the present candidate does not last."""
        if self.leader == self._present or self._present not in self._of_last:
            return False
        return not lead_lasts(self._trials, self.leader, self._present, self._n_updates)

    def _share_forecast(self, name: str) -> dict[str, float]:
        line = self._lines[name]
        return forecast_share(line, self._noise, self._n_updates)._asdict()

    def _rivals(self) -> list[dict[str, Any]]:
        """Return how the leader differs from each candidate, in the last round of both."""
        leader_trials = {
            trial.round: trial for trial in self._trials if trial.candidate == self.leader
        }
        last_trials = {trial.candidate: trial for trial in self._trials if not trial.is_control}
        rivals = []
        for name, trial in last_trials.items():
            # A candidate that failed in the round of another was not compared with it.
            if name == self.leader or trial.round not in leader_trials:
                continue
            facts = divergence_difference(leader_trials[trial.round], trial)
            rivals.append(
                {
                    "candidate": name,
                    "round": trial.round,
                    "kl_difference": facts,
                    "is_distinguished": surely_closer(self._trials, self.leader, name),
                }
            )
        return rivals


def trial_facts(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON can hold it, with the interval of its agreement over images."""
    facts: dict[str, Any] = {
        "candidate": trial.candidate,
        "is_control": trial.is_control,
        "round": trial.round,
        "n_updates": trial.n_updates,
        "seconds": trial.seconds,
        "n_pool_images": trial.n_pool_images,
        "failure": trial.failure,
        "agreement": None,
        "kl": None,
    }
    if trial.failure is not None:
        return facts
    n_hits = int(trial.is_equal.sum())
    interval = clopper_pearson_interval(n_hits, len(trial.is_equal))
    facts["agreement"] = {"value": trial.agreement, **interval._asdict()}
    facts["kl"] = trial.kl
    return facts


def recommended_parameters(
    name: str, present: str, candidates: Mapping[str, ComparisonVariant]
) -> dict[str, Any]:
    """Return the parameters of a candidate or a control, block by block, without empty blocks.

    Nothing for the candidate that is `present`.
    """
    if name == present:
        return {}
    if name in RULES_OF_CONTROLS:
        return {_SELECTION: {"rule": RULES_OF_CONTROLS[name]}}
    variant = candidates[name]
    blocks: dict[str, Any] = {}
    for block in _BLOCKS:
        values = dict(getattr(variant, block))
        if values:
            blocks[block] = values
    selection: dict[str, Any] = {"rule": variant.rule}
    for key in ("criterion", "budget"):
        if getattr(variant, key) is not None:
            selection[key] = getattr(variant, key)
    blocks[_SELECTION] = {**selection, **blocks.get(_SELECTION, {})}
    if variant.features is not None:
        blocks["pu_training"] = {"features": variant.features, **blocks.get("pu_training", {})}
    if variant.objectives is not None:
        objective = {"objective": variant.objectives[0]}
        blocks["distillation"] = {**objective, **blocks.get("distillation", {})}
    return blocks


def _curve(trials: Sequence[Trial]) -> LearningCurve:
    ordered = sorted(trials, key=lambda trial: trial.n_updates)
    return LearningCurve(
        n_updates=tuple(trial.n_updates for trial in ordered),
        n_hits=tuple(int(trial.is_equal.sum()) for trial in ordered),
        n_images=len(ordered[0].is_equal),
    )


def surely_closer(trials: Sequence[Trial], first: str, second: str) -> bool:
    """Return whether a student is closer to the teacher than another, beyond chance.

    It has the smaller mean divergence in every round that both are in, of which there are two or
    more, and in the last of these Wilcoxon's signed-rank test rejects that the two are as close on
    an image, at a level that is divided by the number of candidates (Bonferroni). The test is about
    images; that trainings vary, the rounds before show.

    Args:
        trials: of all rounds.
        first: a candidate.
        second: another one.
    """
    # imported late: it takes a second
    from scipy import stats

    with_student = [trial for trial in trials if trial.failure is None]
    own = {trial.round: trial for trial in with_student if trial.candidate == first}
    others = {trial.round: trial for trial in with_student if trial.candidate == second}
    common = sorted(set(own) & set(others))
    if len(common) < _FEWEST_ROUNDS:
        return False
    if any(own[number].kl >= others[number].kl for number in common):
        return False
    differences = others[common[-1]].divergence - own[common[-1]].divergence
    if not differences.any():
        return False
    n_compared = len({trial.candidate for trial in trials if not trial.is_control})
    level = SIGNIFICANT / 2 / max(1, n_compared - 1)
    return bool(stats.wilcoxon(differences, alternative="greater").pvalue < level)


def lead_lasts(trials: Sequence[Trial], first: str, second: str, n_updates: int) -> bool:
    """Return whether a student would still be closer to the teacher after a full training.

    The difference of the mean divergences in the last two rounds that both are in is continued over
    the logarithm of the number of updates. Few images, shown often, are learned quickly: such a
    lead shrinks from round to round (docs/results/pilot.md has a pilot that it misled).

    Args:
        trials: of all rounds.
        first: a candidate, closer than the second one in the last of these rounds.
        second: another one.
        n_updates: of the full training.
    """
    with_student = [trial for trial in trials if trial.failure is None]
    own = {trial.round: trial for trial in with_student if trial.candidate == first}
    others = {trial.round: trial for trial in with_student if trial.candidate == second}
    common = sorted(set(own) & set(others))[-_FEWEST_ROUNDS:]
    leads = [others[number].kl - own[number].kl for number in common]
    lengths = [own[number].n_updates for number in common]
    if len(common) < _FEWEST_ROUNDS or lengths[-1] >= n_updates or lengths[0] >= lengths[-1]:
        return bool(leads) and leads[-1] > 0
    per_octave = (leads[-1] - leads[0]) / math.log2(lengths[-1] / lengths[0])
    return leads[-1] + per_octave * math.log2(n_updates / lengths[-1]) > 0


def divergence_difference(first: Trial, second: Trial) -> dict[str, float]:
    """Return how much larger the mean divergence of the second is, with its interval over images.

    Student's t: of few images, among which few have a large divergence, it is wide.
    """
    # imported late: it takes a second
    from scipy import stats

    differences = second.divergence - first.divergence
    n = len(differences)
    value = float(differences.mean())
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    margin = quantile * float(differences.std(ddof=1)) / math.sqrt(n)
    return {"value": value, "lower": value - margin, "upper": value + margin}
