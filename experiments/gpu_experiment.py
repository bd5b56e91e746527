"""An environment's comparison without Kedro and MLflow, in pieces of some minutes that go on where the last one ended.

    python -m experiments.gpu_experiment --env cifar10_tiny --images FOLDER --work FOLDER [--minutes 9] [--set KEY=VALUE]

Ends with code 0 when everything is done and with 75 when it has to be called again. It needs torch, torchvision and the
other packages of `pyproject.toml` but for Kedro and MLflow. FOLDER of images holds the files that the environment names
with `${images:…}`. What it makes is in the work folder: image stores, teacher, features, one file a student, and
`results.json`, `results.md`, `results.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.duplicates import excluded_images, find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import plan_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import load_model, save_model
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
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table

CONF = Path(__file__).resolve().parents[1] / "conf"
NOT_FINISHED = 75  # EX_TEMPFAIL
STORES = ("teacher_training", "labeled", "pool", "test")
CELLS = "comparison_cells"


class OutOfTime(Exception):
    """The next piece of work would not end in time."""


class Clock:
    """Starts a piece of work only while one as long as the longest so far would end in time."""

    def __init__(self, minutes: float) -> None:
        self.end, self.longest_s = time.monotonic() + 60 * minutes, 0.0
        self.has_worked = False

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, and tell how long it took.

        Raises:
            OutOfTime: there is no time for it; the first piece of a call is always begun.
        """
        if self.has_worked and time.monotonic() + self.longest_s > self.end:
            raise OutOfTime
        start = time.monotonic()
        result = work()
        seconds = time.monotonic() - start
        self.longest_s, self.has_worked = max(self.longest_s, seconds), True
        print(f"{name}: {seconds:.1f} s", flush=True)
        return result


def card_name() -> str:
    """Return what the numbers are made on."""
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{where}; torch {torch.__version__}, Python {platform.python_version()}"


def run(parameters: Mapping[str, Any], work: Path, clock: Clock) -> None:
    """Make what is not there yet, in the order of the pipeline.

    Raises:
        OutOfTime: something is left to do.
    """
    ingestion = DataIngestionParams.model_validate(parameters["data_ingestion"])
    teacher_params = TeacherParams.model_validate(parameters["teacher"])
    for name in STORES:
        folder = work / f"{name}_images"
        if not (folder / "store.json").is_file():
            plan = plan_store(name, getattr(ingestion, name), ingestion, teacher_params)
            clock.run(f"{name}_images", lambda plan=plan, folder=folder: write_store(plan, folder))
    stores = {name: ImageStore.open(work / f"{name}_images") for name in STORES}

    duplicates = work / "duplicates.parquet"
    if not duplicates.is_file():
        clock.run(
            "duplicates",
            lambda: write_table(find_duplicates(stores, ingestion.near_duplicates), duplicates),
        )
    if not (work / "teacher" / "card.json").is_file():
        clock.run(
            "teacher",
            lambda: _make_teacher(parameters, teacher_params, stores["teacher_training"], work),
        )
    teacher = load_model(work / "teacher")

    compute = FeatureExtractionParams.model_validate(parameters["feature_extraction"]).compute
    features = {}
    for name in ("labeled", "pool"):
        folder, shards = work / f"{name}_features", feature_shards(stores[name], teacher, compute)
        for shard, maker in shards.items():
            _make(folder, {shard: maker}, clock)
        features[name] = ShardedTable.write(folder, shards)
    grid = ComparisonParams.model_validate(parameters["comparison"])
    blocks = Blocks(
        PUTrainingParams.model_validate(parameters["pu_training"]),
        SubsetParams.model_validate(parameters["subset_materialization"]),
        ClassWeightingParams.model_validate(parameters["class_weighting"]),
        DistillationParams.model_validate(parameters["distillation"]),
        RelatednessParams.model_validate(parameters["relatedness"]),
    )
    images = (stores["labeled"], stores["pool"], stores["test"], stores["teacher_training"])
    excluded = excluded_images(read_table(duplicates), blocks.subset_materialization)
    inputs = ComparisonInputs(
        teacher, *images, features["labeled"], features["pool"], excluded=excluded
    )
    cells = comparison_shards(inputs, blocks, grid)
    try:
        for name, maker in cells.items():
            _make(work / CELLS, {name: maker}, clock)
    finally:
        _report(cells, grid, work)


def _make(folder: Path, shard: Mapping[str, Callable[[], Any]], clock: Clock) -> None:
    """Make one shard, unless it is there: only what is made takes its turn."""
    (name,) = shard
    if not (folder / f"{name}.parquet").is_file():
        clock.run(name, lambda: ShardedTable.write(folder, shard, keeps_others=True))


def _make_teacher(
    parameters: Mapping[str, Any], teacher: TeacherParams, images: ImageStore, work: Path
) -> None:
    from pu_kd_pipeline.training.teacher import train_classifier

    if teacher.weights is not None:
        save_model(new_teacher(teacher), work / "teacher")
        return
    training = TeacherTrainingParams.model_validate(parameters["teacher_training"])
    start = time.monotonic()
    model, history = train_classifier(teacher, images, training)
    seconds = time.monotonic() - start
    n_images = training.n_updates * training.batch_size
    facts = {
        "seconds": seconds,
        "images_per_s": n_images / seconds,
        "accuracy": float(history["accuracy"].iloc[-1]),
    }
    save_model(model, work / "teacher")
    (work / "teacher_training.json").write_text(json.dumps(facts, indent=1))


def _report(cells: Mapping[str, Any], grid: ComparisonParams, work: Path) -> None:
    done = [name for name in cells if (work / CELLS / f"{name}.parquet").is_file()]
    if not done:
        return
    results = ShardedTable(work / CELLS, tuple(done)).to_pandas()
    about = f"{card_name()}; {len(done)} of {len(cells)} students"
    (work / "results.md").write_text(
        f"{about}\n\n{comparison_page(results, grid)}", encoding="utf-8"
    )
    kept = {"machine": about, "rows": json.loads(results.to_json(orient="records"))}
    (work / "results.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    plot_comparison(results, grid).savefig(work / "results.png", dpi=150)
    print(about, flush=True)


def _given(settings: list[str]) -> dict[str, Any]:
    """Return `block.key=value` settings as a nested mapping; values are YAML."""
    from omegaconf import OmegaConf

    given: dict[str, Any] = OmegaConf.to_container(OmegaConf.from_dotlist(settings))  # type: ignore[assignment]
    return given


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu_experiment", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--env", default="cifar10_tiny", help="folder of conf/")
    parser.add_argument(
        "--images", type=Path, default=os.environ.get(IMAGES_VARIABLE), help="default: $PU_KD_DATA"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of one call")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="distillation.n_updates=39100 …"
    )
    options = parser.parse_args(argv)
    if options.images is None:
        parser.error("--images: name the folder of the image files, or set PU_KD_DATA")
    return options


def main(argv: list[str] | None = None) -> int:
    """Do one piece; return 0 when nothing is left, else 75."""
    options = _options(argv)
    os.environ[IMAGES_VARIABLE] = str(options.images)
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        parameters = read_parameters(CONF, options.env, _given(options.set))
        _keep_to_one_set_of_parameters(parameters, options.work)
        run(parameters, options.work, Clock(options.minutes))
    except OutOfTime:
        print(f"There is more to do: call it again with --work {options.work}", flush=True)
        return NOT_FINISHED
    except (InputError, ValidationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _keep_to_one_set_of_parameters(parameters: Mapping[str, Any], work: Path) -> None:
    """Refuse a work folder whose stores and teacher were made with others; students tell for themselves."""
    decisive = {
        name: parameters[name] for name in ("data_ingestion", "teacher", "teacher_training")
    }
    file, text = work / "parameters.json", json.dumps(decisive, indent=1, sort_keys=True)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{work} was made with other parameters ({file}): name another folder, or delete it"
        )
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
