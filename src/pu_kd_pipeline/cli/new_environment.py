"""Makes an environment: finds sources, teacher and student, checks them, and writes the files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel

from pu_kd_pipeline.cli.environment_facts import (
    PARTS,
    labels_of,
    look_at_images,
    why_no_truth,
)
from pu_kd_pipeline.cli.environment_files import check_name, staged_environment, write_yaml
from pu_kd_pipeline.cli.environment_table import missing_lines, print_facts, teacher_lines
from pu_kd_pipeline.cli.found_sources import GivenPaths, find_source, with_names
from pu_kd_pipeline.cli.found_teacher import (
    FoundTeacher,
    TeacherOptions,
    find_teacher,
    key_values,
)
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.paths import set_project_folder
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.params.validation import check_parameters

_SMALL_PX = 64  # networks for images of up to this size run faster with one CPU thread
N_UPDATES = 1_000  # of the student: those of the demo would be too few for images of other people
_CONFIGURATION_SUFFIXES = (".yml", ".yaml", ".json")  # of Kedro
_MODELS: dict[str, type[BaseModel]] = {
    "teacher": TeacherParams,
    "data_ingestion": DataIngestionParams,
    "distillation": DistillationParams,
}
_COMMENTS = {
    "globals": "Values for all stages, next to those of conf/base/globals.yml.\n"
    "data: the folder of all outputs of this environment.",
    "teacher": "The teacher. null: read from the card next to its weights.\n"
    "classes: in the order of the network's outputs. mean, std: of pixels in [0, 1], per color.\n"
    "taps: layers that form the descriptor; null: sensible defaults.",
    "data_ingestion": "Where the images come from. All keys of a source are explained in\n"
    "conf/base/parameters_data_ingestion.yml, labels in docs/bring_your_own.md.\n"
    "labels: truth means that labels of the pool are used for the evaluation only.",
    "distillation": "The student, and how it is trained; other keys are those of conf/base.\n"
    "null removes an option of the demo's student. More updates make a better student.",
}


@dataclass(frozen=True)
class Request:
    """The options of `kedro new-env`; see `cli.new_env`."""

    teacher: str
    labeled: Sequence[str]
    pool: Sequence[str]
    test: Sequence[str]
    architecture: str | None = None
    architecture_option: Sequence[str] = ()
    classes: str | None = None
    size_px: int | None = None
    mean: str | None = None
    std: str | None = None
    input: Sequence[str] = ()
    output: Sequence[str] = ()
    student: str | None = None
    student_option: Sequence[str] = ()
    labeled_per_class: int | None = None
    test_per_class: int | None = None
    leave_out_other_labels: bool = False

    @property
    def teacher_options(self) -> TeacherOptions:
        """What they say of the teacher."""
        return TeacherOptions(
            teacher=self.teacher,
            architecture=self.architecture,
            architecture_options=self.architecture_option,
            classes=self.classes,
            size_px=self.size_px,
            mean=self.mean,
            std=self.std,
            input_keys=self.input,
            output_keys=self.output,
        )


def make_environment(
    name: str, request: Request, project: Path, working: Path, *, overwrite: bool
) -> bool:
    """Write conf/NAME and print what was found; on an error, nothing is left behind.

    Returns whether a run would work; False if it would stop because of the teacher.

    Args:
        name: of the environment.
        request: what the user has.
        project: folder of the project.
        working: where relative paths of the request start.
        overwrite: replace the files of an environment that exists.

    Raises:
        InputError: the name cannot be used or is taken, or something of the request cannot be used.
    """
    check_name(name)
    set_project_folder(project)
    paths = GivenPaths(project, working)
    with staged_environment(project / "conf" / name, overwrite) as staged:
        sources = _sources(request, paths)
        labels = None
        if request.classes is None:
            labels = labels_of(sources["labeled"])
        teacher = find_teacher(request.teacher_options, name, labels, paths)
        try:
            return _finish(name, request, teacher, sources, project, staged)
        except BaseException:  # also if the user stops it
            teacher.remove_new_file()
            raise


def _sources(request: Request, paths: GivenPaths) -> dict[str, list[dict[str, Any]]]:
    """Return part -> its sources, with labels and the split of sources that occur twice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in PARTS:
        given: Sequence[str] = getattr(request, part)
        sources = [find_source(each, f"--{part}", paths) for each in given]
        found[part] = with_names(sources, part)
    for part in ("labeled", "test"):
        for source in found[part]:
            source["labels"] = "classes"
            if request.leave_out_other_labels:
                source["other_labels"] = "leave_out"
    for source in found["pool"]:
        # Until it is known whether its labels are of any use.
        source["labels"] = "truth"
    _split(found, request)
    return found


def _split(found: dict[str, list[dict[str, Any]]], request: Request) -> None:
    """Give ranges of images to sources that several parts share."""
    parts_by_path: dict[str, list[str]] = {}
    for part, sources in found.items():
        for source in sources:
            parts_by_path.setdefault(source["path"], []).append(part)
    n_wanted = {"labeled": request.labeled_per_class, "test": request.test_per_class}
    split_parts: set[str] = set()
    for path, parts in parts_by_path.items():
        if len(parts) == 1:
            continue
        if len(set(parts)) < len(parts):
            raise InputError(f"{path} is given twice for the same images: leave one of them out")
        ranges = _ranges(path, parts, n_wanted)
        split_parts |= ranges.keys()
        for part, label_ranks in ranges.items():
            for source in found[part]:
                if source["path"] == path:
                    source["label_ranks"] = label_ranks
    unused = [part for part, n in n_wanted.items() if n and part not in split_parts]
    if unused:
        options = " and ".join(f"--{part}-per-class" for part in unused)
        parts_text = " and ".join(f"--{part}" for part in unused)
        raise InputError(
            f"{options} would split one source that is given for several parts, and no source of "
            f"{parts_text} is: leave it out (for fewer images, set `per_class` in the environment)"
        )


def _ranges(
    path: str, parts: Sequence[str], n_wanted: Mapping[str, int | None]
) -> dict[str, list[int | None]]:
    """Return part -> its range of the images of each label, for the parts that share a path.

    Raises:
        InputError: the number of images of a part is needed and was not given.
    """
    ranges: dict[str, list[int | None]] = {}
    missing = []
    first = 0
    for part in ("labeled", "test"):
        if part not in parts:
            continue
        n_images = n_wanted[part]
        if n_images:
            ranges[part] = [first, first + n_images]
            first += n_images
        # Labeled and test images alone: the latter are all others.
        elif part == "test" and "pool" not in parts:
            ranges[part] = [first, None]
        else:
            missing.append(part)
    if missing:
        options = " and ".join(f"--{part}-per-class" for part in missing)
        raise InputError(
            f"{path} holds the images of {' and '.join(parts)}, which would be the same: give "
            f"{options} to split it, or other files"
        )
    if "pool" in parts:
        ranges["pool"] = [first, None]
    return ranges


def _finish(
    name: str,
    request: Request,
    teacher: FoundTeacher,
    sources: dict[str, list[dict[str, Any]]],
    project: Path,
    staged: Path,
) -> bool:
    """Check everything, write the files into `staged`, and print the tables.

    Returns whether a run would accept the teacher.
    """
    from pu_kd_pipeline.cli.student_choice import n_parameters
    from pu_kd_pipeline.features.teacher_advice import stops_run
    from pu_kd_pipeline.features.teacher_preflight import check_on_sources
    from pu_kd_pipeline.hooks.preflight import check
    from pu_kd_pipeline.hooks.teacher_preflight import typed_check_params
    from pu_kd_pipeline.models.factory import new_student, new_teacher

    conf = project / "conf"
    data_folder = project / _data_folder(name)
    base = read_parameters(conf, "base")
    notes = list(teacher.notes)
    teacher_params = cast(TeacherParams, _typed("teacher", base, teacher.block, name))
    ingestion_block: dict[str, Any] = {**sources, "teacher_training": []}
    ingestion = cast(DataIngestionParams, _typed("data_ingestion", base, ingestion_block, name))
    # Before any image is read: the missing files and what is wrong with the network.
    check({"teacher": teacher_params, "data_ingestion": ingestion}, data_folder)
    model = new_teacher(teacher_params)

    for source in sources["pool"]:
        _choose_labels_of_pool(source, ingestion, teacher_params, notes)
    student_block = _student(request, model, base, notes)
    blocks = {
        "teacher": teacher.block,
        "data_ingestion": ingestion_block,
        "distillation": student_block,
    }
    typed = {block: _typed(block, base, content, name) for block, content in blocks.items()}
    ingestion = cast(DataIngestionParams, typed["data_ingestion"])
    check(typed, data_folder)

    parts = {part: look_at_images(part, ingestion, teacher_params) for part in PARTS}
    _write(name, blocks, model.card.input.size_px, staged)
    read = _check_files(staged, conf, typed)

    distillation = cast(DistillationParams, typed["distillation"])
    architecture = distillation.student_architecture
    student = new_student(model, architecture, distillation.student_options, {})
    parameters = {"teacher": n_parameters(model), f"student, {architecture}": n_parameters(student)}
    check_params = typed_check_params(read["teacher_check"])
    teacher_check = check_on_sources(model, ingestion, teacher_params, check_params)
    lines = [
        *notes,
        *missing_lines(model, parts),
        *teacher_lines(teacher_check, check_params.mode),
    ]
    print_facts(model, parameters, parts, teacher_check, lines)
    return not stops_run(teacher_check, check_params.mode)


def _typed(block: str, base: Mapping[str, Any], content: Mapping[str, Any], name: str) -> BaseModel:
    """Return the block as a run will read it: the keys of base, and those of the environment."""
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.create(base[block]), _unresolved(content))
    values = OmegaConf.to_container(merged, resolve=False)
    file = Path("conf", name, f"parameters_{block}.yml")
    checked = check_parameters(
        {block: values}, {block: _MODELS[block]}, files={block: file}, given={}
    )
    return checked[block]


def _unresolved(content: Mapping[str, Any]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(dict(content))


def _choose_labels_of_pool(
    source: dict[str, Any],
    ingestion: DataIngestionParams,
    teacher: TeacherParams,
    notes: list[str],
) -> None:
    """Ignore the labels of a pool unless some of them name classes."""
    reason = why_no_truth(source, ingestion, teacher)
    if not reason:
        return
    if "label_ranks" in source:
        raise InputError(f"--pool: {source['path']} cannot be split: {reason}")
    source["labels"] = "ignore"
    notes.append(
        f"pool: which images of {source['path']} are relevant is not known, so that there will be "
        f"no precision, recall and AUC ({reason})"
    )


def _student(
    request: Request, model: Any, base: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Return the block `distillation`: the student that was given, or one that is chosen."""
    from pu_kd_pipeline.cli.student_choice import choose_student

    options = key_values(request.student_option, "--student-option")
    architecture = request.student
    if architecture is None:
        chosen = choose_student(model)
        if chosen is None:
            raise InputError(
                "none of the usual students costs half of this teacher or less: name one with "
                "--student (a classifier of torchvision, one of ours, or package.module:function)"
            )
        architecture, chosen_options = chosen
        options = {**chosen_options, **options}
        notes.append(
            f"the student is {architecture}, chosen by its size: name another one with --student"
        )
    # Null removes an option of the demo's student.
    removed = dict.fromkeys(base["distillation"]["student_options"])
    notes.append(
        f"the student is trained with {N_UPDATES:,} updates: a large network, or many classes, "
        "needs more (distillation.n_updates)"
    )
    return {
        "student_architecture": architecture,
        "student_options": {**removed, **options},
        "n_updates": N_UPDATES,
    }


def _data_folder(name: str) -> str:
    return f"data/{name}"


def _write(name: str, blocks: Mapping[str, Any], size_px: int, staged: Path) -> None:
    values: dict[str, Any] = {"data": _data_folder(name)}
    if size_px > _SMALL_PX:
        values["compute"] = {"n_threads": None}
    write_yaml(staged / "globals.yml", _COMMENTS["globals"], values)
    for block, content in blocks.items():
        write_yaml(staged / f"parameters_{block}.yml", _COMMENTS[block], {block: content})


def _check_files(staged: Path, conf: Path, expected: Mapping[str, BaseModel]) -> dict[str, Any]:
    """Check that a run reads from the files what was checked; return all that it reads.

    Raises:
        InputError: a file that was there before sets one of the blocks.
        RuntimeError: a value is read as another one, which is a bug.
    """
    own = {staged / f"parameters_{block}.yml" for block in expected}
    for file in _parameter_files(staged):
        if file in own:
            continue
        shown = file.relative_to(staged)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            raise InputError(
                f"{shown} of the existing environment cannot be read: {exc}: correct or remove "
                "that file, or choose another name"
            ) from exc
        repeated = sorted(set(content) & set(expected))
        if repeated:
            raise InputError(
                f"{shown} of the existing environment sets {', '.join(repeated)}, too: remove "
                "that file, or choose another name"
            )
    read = read_parameters(conf, staged.name)
    for block, typed in expected.items():
        if _MODELS[block].model_validate(read[block]) != typed:
            raise RuntimeError(f"{block} is read from its file as something else")
    return read


def _parameter_files(folder: Path) -> list[Path]:
    """Return the files of an environment from which Kedro reads parameters."""
    from fsspec.implementations.local import LocalFileSystem
    from kedro.config import OmegaConfigLoader

    loader = OmegaConfigLoader(str(folder), base_env="", default_run_env="")
    files = set()
    for pattern in loader.config_patterns["parameters"]:
        for match in LocalFileSystem().glob(f"{glob.escape(str(folder))}/{pattern}"):
            file = Path(match)
            is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
            if file.suffix in _CONFIGURATION_SUFFIXES and not is_hidden and file.is_file():
                files.add(file)
    return sorted(files)
