"""What a run was made from, and how to make it again: hashes, versions, commit, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from pu_kd_pipeline import __version__
from pu_kd_pipeline.masking import MASK, masked_values
from pu_kd_pipeline.provenance.commits import Commit, commit_of_package

ENVIRONMENT = "again"


@dataclass(frozen=True)
class Origin:
    """What the page shows of it."""

    networks: list[tuple[str, str]]
    """Teacher and student with the hash of card and weights."""
    versions: list[tuple[str, str]]
    commit: Commit | None
    parameters: str
    """All blocks as YAML, a file of an environment that runs with the same parameters."""
    has_masked: bool
    """Whether credentials in the parameters were replaced."""
    seeds: list[int]
    pipeline: str
    page_pipeline: str
    """The pipeline that writes the page from saved results, with options."""
    note: str | None
    """Why the hashes may be those of another run."""


def origin_of(
    certificate: Mapping[str, Any],
    parameters: Mapping[str, Any],
    pipeline: str,
    manifest_digest: str | None,
    page_pipeline: str = "reporting",
) -> Origin:
    """Return what a run was made from.

    Args:
        certificate: the student's; its `provenance` has the hashes of the networks.
        parameters: blocks of parameters by name.
        pipeline: name of the pipeline that makes the page.
        manifest_digest: of the manifest on the page; None: there is none.
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
    note = None
    learned_from = provenance.get("manifest")
    if manifest_digest is not None and learned_from not in (None, manifest_digest):
        note = (
            "certificate.json is of a student that learned from another manifest than the one on "
            "this page: run the stages from `distillation` on again."
        )
    blocks = {name: _plain(block) for name, block in parameters.items()}
    shown = masked_values(blocks)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return Origin(
        networks=networks,
        versions=versions,
        commit=commit_of_package(),
        parameters=text,
        has_masked=shown != blocks or MASK in text,
        seeds=sorted(_seeds(blocks)),
        pipeline=pipeline,
        page_pipeline=page_pipeline,
        note=note,
    )


def _plain(block: Any) -> Any:
    if isinstance(block, BaseModel):
        return block.model_dump(mode="json")
    return block


def _seeds(tree: Any) -> set[int]:
    """Return all values under a key `seed`."""
    seeds: set[int] = set()
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "seed" and isinstance(value, int):
                seeds.add(value)
            seeds |= _seeds(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            seeds |= _seeds(value)
    return seeds
