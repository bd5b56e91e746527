"""What tells runs apart in a list: their names, the tags behind them, and the columns to see."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pu_kd_pipeline.masking import without_credentials

RULE = "rule"
SEED = "seed"
# Their `seed` is not the run's: runs with other seeds measure on, or ask about, the same images.
BLOCKS_WITH_A_FIXED_SEED = ("yardstick", "pool_audit")
STUDENT = "student"
DATA = "data"  # the data folder
ACCURACY = "student/accuracy"
GAIN = "selection/gain"
# Blocks of pipelines that train many students: the run itself has no rule and no student.
MANY_STUDENTS = ("comparison", "pilot", "student_search")
# The pipelines without a rule read its block, too, for the images that it excludes.
BLOCKS_OF_A_RULE = ("subset_materialization", "distillation")
BLOCK_WITHOUT_A_RULE = "unlabeled_distillation"
# The first block that a run reads names its student.
STUDENT_BLOCKS = ("distillation", "unlabeled_distillation", "critic_distillation")
MAX_TAG_LENGTH = 250
MAX_NAME_LENGTH = 250  # of the column in MLflow's database
MAX_ENVIRONMENT_LENGTH = 50
MAX_PIPELINE_LENGTH = 100
# With a minus sign that is as wide as a plus sign, as in the report.
MINUS = "\u2212"
SEPARATOR = " · "

VIEW = "pu_kd_pipeline"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# What follows the address of a server and the identifier of an experiment: the page with this view.
VIEW_PATH = f"/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
_COLUMNS = (
    "attributes.`Created`",
    "attributes.`Duration`",
    f"metrics.`{ACCURACY}`",
    f"metrics.`{GAIN}`",
    "metrics.`student/agreement`",
    "tags.`env`",
    f"tags.`{DATA}`",
    "tags.`pipeline`",
    f"tags.`{RULE}`",
    f"tags.`{SEED}`",
    f"tags.`{STUDENT}`",
)


def identifying_tags(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the tags `seed`, `rule` and `student`, those that follow from a run's parameters.

    Args:
        parameters: dotted key -> text, of the blocks that the run reads.
    """
    tags = {}
    seeds = parameters.get("comparison.seeds") or ", ".join(_seeds(parameters))
    if seeds:
        tags[SEED] = seeds.strip("[]")
    blocks = {key.partition(".")[0] for key in parameters}
    if not blocks.intersection(MANY_STUDENTS):
        rule = parameters.get("subset_materialization.rule")
        is_used = blocks.issuperset(BLOCKS_OF_A_RULE) and BLOCK_WITHOUT_A_RULE not in blocks
        if rule and is_used:
            tags[RULE] = rule
        student = _student(parameters)
        if student:
            tags[STUDENT] = student
    return {key: value[:MAX_TAG_LENGTH] for key, value in tags.items()}


def new_tags(tags: Mapping[str, str], parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the identifying tags that a run needs in addition, or with another value.

    Of a run that stages share, a stage that reads the block of a student has the last word: it may
    be repeated with another rule, and a stage before may have a seed of its own.

    Args:
        tags: that the run has.
        parameters: of the stage, as in `identifying_tags`.
    """
    found = identifying_tags(parameters)
    is_of_student = STUDENT in found
    new = {}
    for key, value in found.items():
        if key not in tags or (is_of_student and tags[key] != value):
            new[key] = value
    return new


def _seeds(parameters: Mapping[str, str]) -> list[str]:
    """Return the different seeds of the blocks, which are one unless a block sets its own.

    Without those that draw the same images for every run, whatever its seed is.
    """
    seeds = []
    for key, value in parameters.items():
        named = re.fullmatch(r"([^.]+)\.seed", key)
        is_of_the_run = named is not None and named[1] not in BLOCKS_WITH_A_FIXED_SEED
        if is_of_the_run and value not in seeds:
            seeds.append(value)
    return seeds


def _student(parameters: Mapping[str, str]) -> str:
    for block in STUDENT_BLOCKS:
        architecture = parameters.get(f"{block}.student_architecture")
        if architecture is None:
            continue
        prefix = f"{block}.student_options."
        options = []
        for key, value in parameters.items():
            if key.startswith(prefix):
                options.append(f"{key.removeprefix(prefix)} {value}")
        return ", ".join([architecture, *options])
    return ""


def first_name(pipeline: str, environment: str) -> str:
    """Return the name of a run that has logged nothing yet."""
    shown = pipeline[:MAX_PIPELINE_LENGTH]
    return f"{shown} ({environment[:MAX_ENVIRONMENT_LENGTH]})"


def full_name(name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return the name of a run that has ended: `mixture, seed 0: 97.2 %, gain +1.6 · full (local)`.

    What differs between runs comes first: MLflow's list shows some twenty letters. It is cut to
    what every store takes, such as for a comparison with a hundred seeds; `name` stays whole.

    Args:
        name: result of `first_name`.
        tags: of the run.
        metrics: of the run; the gain is a share, and in points in the name.
    """
    facts = []
    if tags.get(RULE):
        facts.append(tags[RULE])
    if tags.get(SEED):
        facts.append(f"seed {tags[SEED]}")
    results = []
    if ACCURACY in metrics:
        results.append(f"{100 * metrics[ACCURACY]:.1f} %")
    if GAIN in metrics:
        points = f"{100 * metrics[GAIN]:+.1f}".replace("-", MINUS)
        results.append(f"gain {points}")
    parts = [", ".join(part) for part in (facts, results) if part]
    if not parts:
        return name
    n_left = MAX_NAME_LENGTH - len(SEPARATOR) - len(name)
    start = _cut(without_credentials(": ".join(parts)), n_left)
    return f"{start}{SEPARATOR}{name}"


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return text[: length - 1] + "…"


def is_given_by_a_run(shown: str, name: str) -> bool:
    """Return whether a run has given itself the name that is shown, and no person has.

    Args:
        shown: the present name of the run.
        name: result of `first_name`.
    """
    return shown == name or shown.endswith(SEPARATOR + name)


def view_state() -> str:
    """Return the columns and the order of a list of runs, as MLflow's pages read them: JSON."""
    state = {
        "selectedColumns": list(_COLUMNS),
        "orderByKey": f"metrics.`{ACCURACY}`",
        "orderByAsc": False,
    }
    return json.dumps(state)
