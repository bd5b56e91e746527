"""What a run was made from, and how to make it again: hashes, versions, commit, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from pu_kd_pipeline import __version__
from pu_kd_pipeline.masking import MASK, masked_option, masked_values
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.params.pu_training import AUDIT
from pu_kd_pipeline.provenance.commits import Commit
from pu_kd_pipeline.storage.manifest import WEIGHTING, manifest_digest

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.models.model import Model

ENVIRONMENT = "again"
_TRAINING = "training"  # key of the recipe in a card, see `training.recipes`, which imports torch
_MAX_NAMED = 5  # parameters in a sentence
# Stages before a pipeline that does not contain them, when it is run from the images on.
_STAGES_BEFORE = {
    "critic_distillation": ("data_ingestion", "teacher"),
    "comparison": ("data_ingestion", "teacher", "feature_extraction"),
}


@dataclass(frozen=True)
class Origin:
    """What the page shows of it."""

    networks: list[tuple[str, str]]
    """Teacher and student with the hash of card and weights."""
    versions: list[tuple[str, str]]
    commit: Commit | None
    """The commit of the code that evaluated the student; None where it is not known."""
    seed: int | str | None
    """The seed of the student's training, or several; None where it is not known."""
    parameters: str
    """All blocks as YAML, a file of an environment that runs with the same parameters."""
    has_masked: bool
    """Whether credentials in the parameters were replaced."""
    command: str
    """The option that runs everything again, such as "--pipeline=full"."""
    page_pipeline: str
    """The pipeline that writes the page from saved results, with options."""
    notes: list[str]
    """Which results on the page are of different runs."""
    code_title: str = "code of the evaluation"
    """What the commit is of."""
    seed_title: str = "seed of the training"
    other_seed: str = "# another seed: change each `seed` in"
    """How to run with other seeds, as the beginning of a comment."""
    compared: str = (
        "The rule, and the parameters of the student's training, are compared with what the "
        "results hold."
    )
    """Which parameters are compared with those of the results."""


def origin_of(
    certificate: Mapping[str, Any],
    parameters: Mapping[str, Any],
    pipeline: str,
    manifest: pd.DataFrame | None,
    student: Model,
    page_pipeline: str = "reporting",
) -> Origin:
    """Return what a run was made from.

    Args:
        certificate: the student's; its `provenance` has the hashes of the networks.
        parameters: blocks of parameters by name, as the command has them that writes the page.
        pipeline: name of the pipeline that makes the page.
        manifest: the one on the page; None where nothing is selected.
        student: the saved one; its card holds the parameters that it was trained with.
        page_pipeline: name of the pipeline that writes the page from saved results, with options.
    """
    provenance = certificate.get("provenance") or {}
    networks = []
    for name in ("teacher", "student"):
        if provenance.get(name):
            networks.append((name, str(provenance[name])))
    versions = [("pu_kd_pipeline, of this page", __version__)]
    if provenance.get("python"):
        versions.append(("Python, of the evaluation", str(provenance["python"])))
    for library, number in (provenance.get("libraries") or {}).items():
        versions.append((f"{library}, of the evaluation", str(number)))
    if provenance.get("code_of_training"):
        versions.append(("code of the student's training", str(provenance["code_of_training"])))
    commit = None
    if provenance.get("commit"):
        commit = Commit(str(provenance["commit"]), bool(provenance.get("commit_has_changes")))
    blocks = plain_blocks(parameters)
    text, has_masked = parameters_file(blocks)
    command = run_option(pipeline)
    notes = [
        _note_on_student(provenance, student, command),
        _note_on_manifest(provenance, manifest, command),
        _note_on_parameters(_recorded(student, manifest, pipeline), blocks),
        note_on_audit(blocks),
    ]
    return Origin(
        networks=networks,
        versions=versions,
        commit=commit,
        seed=provenance.get("seed"),
        parameters=text,
        has_masked=has_masked,
        command=command,
        page_pipeline=page_pipeline,
        notes=[note for note in notes if note is not None],
    )


def run_option(pipeline: str) -> str:
    """Return the option of `kedro run` that makes a page of a pipeline from the images on."""
    stages = _STAGES_BEFORE.get(pipeline)
    if stages is None:
        return f"--pipeline={pipeline}"
    return f"--pipelines={','.join((*stages, pipeline))}"


def plain_blocks(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return blocks of parameters as JSON could hold them."""
    return {name: _plain(block) for name, block in parameters.items()}


def parameters_file(blocks: Mapping[str, Any]) -> tuple[str, bool]:
    """Return blocks as YAML, and whether credentials in them were replaced."""
    shown = masked_values(blocks)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return text, shown != blocks or MASK in text


def note_on_audit(blocks: Mapping[str, Any]) -> str | None:
    """Return that the commands need an audit of the pool; None where the prior is none of one."""
    if (blocks.get("pu_training") or {}).get("class_prior") != AUDIT:
        return None
    return (
        "pu_training.class_prior is audit, and the commands below do not audit the pool: set it to "
        "the number that the audit found, or run `kedro run --pipeline=pool_audit` with the same "
        "--env and --params before, and answer the page that it writes."
    )


def _note_on_student(provenance: Mapping[str, Any], student: Model, command: str) -> str | None:
    if provenance.get("student") in (None, student.fingerprint()):
        return None
    return (
        "certificate.json is of another student than student_model: hashes, accuracies and "
        "confusions on this page may be of the student before, and its curves of the present one. "
        f"Run `kedro run {command}` again."
    )


def _note_on_manifest(
    provenance: Mapping[str, Any], manifest: pd.DataFrame | None, command: str
) -> str | None:
    if manifest is None:
        return None
    learned_from = provenance.get("manifest")
    # Certificates of students of earlier versions state neither.
    is_unknown = learned_from is None and provenance.get("code_of_training") is None
    if is_unknown or learned_from == manifest_digest(manifest):
        return None
    return (
        "certificate.json is of a student that did not learn from the manifest on this page. "
        f"Run `kedro run {command}` again."
    )


def _note_on_parameters(
    recorded: Mapping[str, Mapping[str, Any]], blocks: Mapping[str, Any]
) -> str | None:
    """Return which parameters of the page are not those that results were made with."""
    differences = []
    for name, values in recorded.items():
        present = dict(flatten(blocks.get(name) or {}))
        for key, value in flatten(values):
            if key in present and present[key] != value:
                was = masked_option(key, value)
                now = masked_option(key, present[key])
                differences.append(f"{name}.{key} was {_text(was)} and is {_text(now)}")
    if not differences:
        return None
    named = ", ".join(differences[:_MAX_NAMED])
    n_more = len(differences) - _MAX_NAMED
    if n_more > 0:
        named += f" and {n_more} more"
    return (
        "The parameters on this page are those of the command that wrote it, and the run had "
        f"other ones: {named}."
    )


def _recorded(
    student: Model, manifest: pd.DataFrame | None, pipeline: str
) -> dict[str, Mapping[str, Any]]:
    """Return the parameters that results hold themselves, by name of their block."""
    recipe = student.card.origin.get(_TRAINING)
    if not isinstance(recipe, Mapping):
        recipe = {}
    training = recipe.get("distillation") or {}
    if manifest is None:
        return {pipeline: training}
    rule = manifest.attrs.get("rule")
    if pipeline == "full_unlabeled":
        selection = {"relatedness": {"sampling": rule}}
        return {"unlabeled_distillation": training, **selection}
    return {
        "subset_materialization": {"rule": rule},
        "class_weighting": recipe.get(WEIGHTING) or {},
        "distillation": training,
    }


def _text(value: Any) -> str:
    # As YAML has it.
    return "null" if value is None else str(value)


def _plain(block: Any) -> Any:
    if isinstance(block, BaseModel):
        return block.model_dump(mode="json")
    return block
