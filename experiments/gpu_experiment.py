"""Run comparisons without Kedro and MLflow, in pieces of some minutes.

    python -m experiments.gpu_experiment --images FOLDER --work FOLDER \\
        [--only photos default paper] [--minutes 9] [--set KEY=VALUE]
    python -m experiments.gpu_experiment --env cifar10_small --images FOLDER --work FOLDER

Without `--env`, these are the comparisons of `COMPARISONS`, one after another: photos with a
teacher from PyPI, and ResNet-34 to ResNet-18 on CIFAR-10 with the default recipe and with the
paper's. With `--env`, it is the comparison of that environment.

Exits with code 0 when everything is done, and with 75 when it must be called again; it then
resumes. It needs the packages of `pyproject.toml` except Kedro and MLflow. The folder of images
holds the files that the environments name with `${images:…}`. The work folder gets a folder for
each environment with image stores, teacher, features and one file per student, and for each
comparison `NAME.json`, `NAME.md` and `NAME.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.gap import measure_gaps
from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.duplicates import excluded_images, find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import plan_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model, load_model, save_model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import IMAGES_VARIABLE, read_parameters
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table

CONF = Path(__file__).resolve().parents[1] / "conf"
NOT_FINISHED = 75  # the exit code EX_TEMPFAIL
STORES = ("teacher_training", "labeled", "pool", "test")
CELLS = "comparison_cells"


@dataclass(frozen=True)
class Comparison:
    """One comparison of the experiment.

    Attributes:
        environment: a folder of conf/.
        settings: what differs from it, as for `--set`.
    """

    environment: str
    settings: tuple[str, ...] = ()


# In this order: the shortest first. Two of an environment share teacher and features.
COMPARISONS = {
    "photos": Comparison("caltech"),
    "default": Comparison("cifar10_tiny", ("recipe=default",)),
    "paper": Comparison("cifar10_tiny", ("recipe=paper",)),
}


class OutOfTime(Exception):
    """The next piece of work would not end in time."""


class Clock:
    """Starts a piece of work only if one as long as the longest so far would end in time.

    Args:
        minutes: time of this call.
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._longest_s = 0.0
        self._has_worked = False

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, and print how long it took.

        Raises:
            OutOfTime: too little time is left; the first piece of a call always starts.
        """
        start = time.monotonic()
        expected_end = start + self._longest_s
        # Without this exception, a call with too little time would never make progress.
        if self._has_worked and expected_end > self._end:
            raise OutOfTime
        result = work()
        seconds = time.monotonic() - start
        self._longest_s = max(self._longest_s, seconds)
        self._has_worked = True
        print(f"{name}: {seconds:.1f} s", flush=True)
        return result


def machine_name() -> str:
    """Return the hardware and the versions that the numbers depend on."""
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return f"{device}; torch {torch.__version__}, Python {platform.python_version()}"


def run(parameters: Mapping[str, Any], work: Path, clock: Clock, results: Path) -> None:
    """Make what is missing in the work folder, in the order of the pipeline.

    Args:
        parameters: of the environment.
        work: folder of its stores, teacher, features and students.
        clock: decides what is begun.
        results: path of the results, without a suffix.

    Raises:
        OutOfTime: something is left to do.
    """
    ingestion = DataIngestionParams.model_validate(parameters["data_ingestion"])
    stores = _make_stores(parameters, work, clock)
    duplicates = work / "duplicates.parquet"
    if not duplicates.is_file():

        def search() -> None:
            found = find_duplicates(stores, ingestion.near_duplicates)
            write_table(found, duplicates)

        clock.run("duplicates", search)
    if not (work / "teacher" / "card.json").is_file():
        images = stores["teacher_training"]
        clock.run("teacher", partial(_make_teacher, parameters, images, work))
    teacher = load_model(work / "teacher")
    features = _make_features(parameters, stores, teacher, work, clock)

    grid = ComparisonParams.model_validate(parameters["comparison"])
    blocks = Blocks(
        PUTrainingParams.model_validate(parameters["pu_training"]),
        SubsetParams.model_validate(parameters["subset_materialization"]),
        ClassWeightingParams.model_validate(parameters["class_weighting"]),
        DistillationParams.model_validate(parameters["distillation"]),
        RelatednessParams.model_validate(parameters["relatedness"]),
    )
    found = read_table(duplicates)
    yardstick = choose_yardstick(
        stores["labeled"],
        stores["pool"],
        features["labeled"],
        features["pool"],
        teacher,
        found,
        YardstickParams.model_validate(parameters["yardstick"]),
    )
    excluded = excluded_images(found, blocks.subset_materialization, yardstick)
    inputs = ComparisonInputs(
        teacher,
        stores["labeled"],
        stores["pool"],
        stores["test"],
        stores["teacher_training"],
        features["labeled"],
        features["pool"],
        excluded=excluded,
        yardstick=Yardstick(yardstick, stores),
    )
    cells = comparison_shards(inputs, blocks, grid)
    try:
        _make_shards(work / CELLS, cells, clock)
    finally:
        # Also when time is up: the results so far can be read.
        _report(cells, grid, blocks, work, results)


def _make_stores(parameters: Mapping[str, Any], work: Path, clock: Clock) -> dict[str, ImageStore]:
    ingestion = DataIngestionParams.model_validate(parameters["data_ingestion"])
    teacher = TeacherParams.model_validate(parameters["teacher"])
    folders = {name: work / f"{name}_images" for name in STORES}
    for name, folder in folders.items():
        # Written last: a store without it was interrupted.
        description = folder / "store.json"
        if not description.is_file():
            source = getattr(ingestion, name)
            plan = plan_store(name, source, ingestion, teacher)
            write = partial(write_store, plan, folder)
            clock.run(folder.name, write)
    return {name: ImageStore.open(folder) for name, folder in folders.items()}


def _make_features(
    parameters: Mapping[str, Any],
    stores: Mapping[str, ImageStore],
    teacher: Model,
    work: Path,
    clock: Clock,
) -> dict[str, ShardedTable]:
    params = FeatureExtractionParams.model_validate(parameters["feature_extraction"])
    features = {}
    for name in ("labeled", "pool"):
        folder = work / f"{name}_features"
        shards = feature_shards(stores[name], teacher, params.compute)
        _make_shards(folder, shards, clock)
        # All shards exist now; this writes only the list of them.
        features[name] = ShardedTable.write(folder, shards)
    return features


def _make_shards(folder: Path, shards: Mapping[str, Callable[[], Any]], clock: Clock) -> None:
    """Make the missing shards of a table, each as one piece of work."""
    for name, make in shards.items():
        file = folder / f"{name}.parquet"
        if not file.is_file():
            write = partial(ShardedTable.write, folder, {name: make}, keeps_others=True)
            clock.run(name, write)


def _make_teacher(parameters: Mapping[str, Any], images: ImageStore, work: Path) -> None:
    from pu_kd_pipeline.training.teacher import train_classifier

    teacher = TeacherParams.model_validate(parameters["teacher"])
    if teacher.weights is not None:
        # Trained elsewhere: there is nothing to train.
        given_teacher = new_teacher(teacher)
        save_model(given_teacher, work / "teacher")
        return
    training = TeacherTrainingParams.model_validate(parameters["teacher_training"])
    start = time.monotonic()
    model, history = train_classifier(teacher, images, training)
    seconds = time.monotonic() - start
    n_images = training.n_updates * training.batch_size
    last_accuracy = history["accuracy"].iloc[-1]
    facts = {
        "seconds": seconds,
        "images_per_s": n_images / seconds,
        "accuracy": float(last_accuracy),
    }
    save_model(model, work / "teacher")
    text = json.dumps(facts, indent=1)
    (work / "teacher_training.json").write_text(text)


def _report(
    cells: Mapping[str, Any], grid: ComparisonParams, blocks: Blocks, work: Path, path: Path
) -> None:
    folder = work / CELLS
    finished = []
    for name in cells:
        file = folder / f"{name}.parquet"
        if file.is_file():
            finished.append(name)
    if not finished:
        return
    table = ShardedTable(folder, tuple(finished))
    results = table.to_pandas()
    machine = machine_name()
    about = f"{machine}; {len(finished)} of {len(cells)} students"
    gaps = measure_gaps(results, grid, blocks)
    page = comparison_page(results, grid, gaps)
    path.with_suffix(".md").write_text(f"{about}\n\n{page}", encoding="utf-8")
    # By way of pandas, which writes missing values as null.
    records = results.to_json(orient="records")
    rows = json.loads(records)
    text = json.dumps({"machine": about, "rows": rows}, indent=1)
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    figure = plot_comparison(results, grid, gaps)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"{path.name}: {about}", flush=True)


def _given(settings: list[str]) -> dict[str, Any]:
    """Return `block.key=value` settings as a nested mapping; values are YAML."""
    from omegaconf import OmegaConf

    config = OmegaConf.from_dotlist(settings)
    given: Any = OmegaConf.to_container(config)
    return given


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu_experiment", description=__doc__.splitlines()[0]
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="default: all"
    )
    which.add_argument("--env", help="folder of conf/ whose comparison to run instead")
    parser.add_argument(
        "--images", type=Path, default=os.environ.get(IMAGES_VARIABLE), help="default: $PU_KD_DATA"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="time of one call")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="distillation.n_updates=39100 …"
    )
    options = parser.parse_args(argv)
    if options.images is None:
        parser.error("--images: name the folder of the image files, or set PU_KD_DATA")
    return options


def main(argv: list[str] | None = None) -> int:
    """Work for the given minutes; return the exit code, 0 when nothing is left to do."""
    options = _options(argv)
    os.environ[IMAGES_VARIABLE] = str(options.images)
    comparisons = {name: COMPARISONS[name] for name in options.only}
    if options.env is not None:
        comparisons = {options.env: Comparison(options.env)}
    clock = Clock(options.minutes)
    try:
        for name, comparison in comparisons.items():
            _run_comparison(name, comparison, options, clock)
    except OutOfTime:
        print(f"There is more to do: call it again with --work {options.work}", flush=True)
        return NOT_FINISHED
    except (InputError, ValidationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _run_comparison(
    name: str, comparison: Comparison, options: argparse.Namespace, clock: Clock
) -> None:
    work = options.work / comparison.environment
    work.mkdir(parents=True, exist_ok=True)
    given = _given([*comparison.settings, *options.set])
    parameters = read_parameters(CONF, comparison.environment, given)
    _refuse_other_parameters(parameters, work)
    run(parameters, work, clock, options.work / name)


def _refuse_other_parameters(parameters: Mapping[str, Any], work: Path) -> None:
    """Refuse a work folder whose stores and teacher were made with other parameters."""
    # Not those of students: the names of their files depend on their parameters.
    names = ("data_ingestion", "teacher", "teacher_training")
    deciding = {name: parameters[name] for name in names}
    text = json.dumps(deciding, indent=1, sort_keys=True)
    file = work / "parameters.json"
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{work} was made with other parameters ({file}): name another folder, or delete it"
        )
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
