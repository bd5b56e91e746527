"""Testing the user's teacher on a few labeled images before the first node runs.

The result is kept next to the node records, so that a run which changes nothing that it depends on
does not test again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pu_kd_pipeline.incremental.checked_files import read_checked, write_checked
from pu_kd_pipeline.incremental.file_states import FileStates
from pu_kd_pipeline.incremental.node_records import external_states
from pu_kd_pipeline.incremental.node_states import local_path
from pu_kd_pipeline.incremental.parameter_texts import parameter_texts
from pu_kd_pipeline.incremental.staleness import FILE_STATES, RECORDS
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.teacher import TeacherCheckParams, TeacherParams
from pu_kd_pipeline.params.validation import check_parameters
from pu_kd_pipeline.provenance.fingerprint import current_index
from pu_kd_pipeline.provenance.libraries import library_versions
from pu_kd_pipeline.storage.digests import json_digest

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

RESULT = "teacher_preflight.json"
LABELED_STORE = "labeled_images"
CHECK_BLOCK = "teacher_check"
# The block is next to that of the teacher.
_FILE = Path("conf/base/parameters_teacher.yml")


def preflight_teacher(pipeline: Pipeline, catalog: DataCatalog, blocks: Mapping[str, Any]) -> None:
    """Test a teacher that comes with weights, in a run that ingests labeled images.

    A teacher that is trained in the run, and features that are made from stored images, are tested
    by the stage `feature_extraction`.

    Args:
        pipeline: what runs.
        catalog: of the run.
        blocks: block name -> typed block that the run reads.

    Raises:
        InputError: the teacher is at chance level, and `teacher_check.mode` is `stop`.
    """
    teacher = blocks.get("teacher")
    ingestion = blocks.get("data_ingestion")
    if LABELED_STORE not in pipeline.all_outputs():
        return
    if not isinstance(teacher, TeacherParams) or teacher.weights is None:
        return
    if not isinstance(ingestion, DataIngestionParams):
        return
    params = _check_params(catalog)
    if params is None or params.mode == "off":
        return
    folder = None
    if RECORDS in catalog:
        folder = local_path(catalog, RECORDS)
    check = _check(teacher, ingestion, params, folder)

    # Imported here: it imports torch, which a run without a teacher of its own may not need.
    from pu_kd_pipeline.features.teacher_advice import report_check

    report_check(check, params.mode)


def _check_params(catalog: DataCatalog) -> TeacherCheckParams | None:
    """Return the block, which not every pipeline reads; None if the configuration has none."""
    entry = f"params:{CHECK_BLOCK}"
    if entry not in catalog:
        return None
    return typed_check_params(catalog.load(entry))


def typed_check_params(block: Any) -> TeacherCheckParams:
    """Return the block `teacher_check` with its type.

    Raises:
        InputError: a key of it cannot be used.
    """
    if isinstance(block, TeacherCheckParams):
        return block
    checked = check_parameters(
        {CHECK_BLOCK: block},
        {CHECK_BLOCK: TeacherCheckParams},
        files={CHECK_BLOCK: _FILE},
        given={},
    )
    return cast(TeacherCheckParams, checked[CHECK_BLOCK])


def _check(
    teacher: TeacherParams,
    ingestion: DataIngestionParams,
    params: TeacherCheckParams,
    folder: Path | None,
) -> dict[str, Any]:
    """Return the kept result of the test, if it is of the same teacher and images, or a new one."""
    if folder is None:
        return _new_check(teacher, ingestion, params)
    key = _key(teacher, ingestion, params, FileStates(folder / FILE_STATES))
    kept = read_checked(folder / RESULT)
    if isinstance(kept, dict) and kept.get("key") == key:
        found: dict[str, Any] = kept["check"]
        return found
    check = _new_check(teacher, ingestion, params)
    folder.mkdir(parents=True, exist_ok=True)
    write_checked(folder / RESULT, {"key": key, "check": check})
    return check


def _new_check(
    teacher: TeacherParams, ingestion: DataIngestionParams, params: TeacherCheckParams
) -> dict[str, Any]:
    from pu_kd_pipeline.features.teacher_preflight import check_on_sources
    from pu_kd_pipeline.models.factory import new_teacher

    return check_on_sources(new_teacher(teacher), ingestion, teacher, params)


def _key(
    teacher: TeacherParams,
    ingestion: DataIngestionParams,
    params: TeacherCheckParams,
    files: FileStates,
) -> str:
    """Return a digest of everything that the result depends on."""
    values = {
        "teacher": teacher,
        "labeled": ingestion.labeled,
        "seed": ingestion.seed,
        "store": ingestion.store,
        "params": params.model_copy(update={"mode": "stop"}),
    }
    texts: dict[str, str] = {}
    states: dict[str, str] = {}
    for name, value in values.items():
        texts |= parameter_texts(name, value)
        states |= external_states(name, value, files)
    files.save()
    # All source files of this package: an edited one costs a test, and parsing them takes longer.
    code = current_index().stamp([preflight_teacher])
    return json_digest([texts, states, code, library_versions()])
