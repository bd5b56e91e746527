"""A user's own teacher, images and network code, and runs of the real stages on them.

Each run is a process of its own that has imported torch already, so that runs take a second, edits
of the network's code are seen, and kills are real.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.incremental.edited_project import kill_before_rename

PROJECT = Path(__file__).resolve().parents[2]
STAGES = (
    "data_ingestion",
    "teacher",
    "feature_extraction",
    "pu_training",
    "pool_scoring",
    "subset_materialization",
)
N_POOL = 24
N_PER_CLASS = 4
CLASSES = ("a", "b")
NETWORK = """
from torch import nn
from {helpers} import scaled

class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 6, 3)
        self.last = nn.Linear(6, n_classes)

    def forward(self, images):
        hidden = self.first(images).relu()
        hidden = scaled(self.second(hidden).relu())
        return self.last(hidden.mean(dim=(2, 3)))

def build(num_classes, **options):
    return Net(num_classes)
"""
HELPERS = """
def scaled(values):
    return {factor} * values
"""
PRELOADED = [
    "torch",
    "kedro.framework.session",
    "pu_kd_pipeline.cli.commands",
    "pu_kd_pipeline.training.pu_classifier",
    "pu_kd_pipeline.training.class_prior",
    "pu_kd_pipeline.images.ingestion",
    "pu_kd_pipeline.features.scoring",
    "pu_kd_pipeline.selection.manifest",
    "sklearn.linear_model",
]


@dataclass(frozen=True)
class StageRun:
    """One command.

    Attributes:
        data: folder of outputs.
        stages: pipelines to run.
        force: run with --force.
        kill_before: the run is killed before its n-th rename of a file; None: it is not.
    """

    data: Path
    stages: tuple[str, ...] = STAGES
    force: bool = False
    kill_before: int | None = None


class UserProject:
    """What a user brings, in a folder; its methods change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.seed = 0
        self.images = folder / "images"
        self._module = "users_network"
        self._helpers = "users_layers"
        network = NETWORK.format(helpers=self._helpers)
        (folder / f"{self._module}.py").write_text(network)
        self.edit_layers(1)
        self._draw_images()
        self.write_weights(0)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def edit_layers(self, factor: int) -> None:
        """Change a module that the network's module imports."""
        file = self.folder / f"{self._helpers}.py"
        file.write_text(HELPERS.format(factor=factor))

    def write_weights(self, seed: int) -> None:
        """Replace the teacher's weights by others of the same size."""
        from safetensors.numpy import save_file

        shapes = {
            "first.weight": (4, 1, 3, 3),
            "first.bias": (4,),
            "second.weight": (6, 4, 3, 3),
            "second.bias": (6,),
            "last.weight": (len(CLASSES), 6),
            "last.bias": (len(CLASSES),),
        }
        generator = np.random.default_rng(seed)
        weights = {}
        for name, shape in shapes.items():
            weights[name] = generator.normal(size=shape).astype(np.float32)
        save_file(weights, self.folder / "weights.safetensors")

    def replace_image(self, number: int, seed: int) -> None:
        """Replace a pool image by one of the same name, size and modification time."""
        file = self.images / "pool" / f"{number:02d}.bmp"
        about = file.stat()
        _draw(file, (number, seed))
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))

    def start(self, run: StageRun) -> int | None:
        """Run stages in a process of its own, and return its exit code; -9 after a kill."""
        parameters = self._parameters(run.data)
        log = self.folder / "log.txt"
        process = self._context.Process(target=_run, args=(run, self.folder, parameters, log))
        process.start()
        process.join()
        return process.exitcode

    def log(self) -> str:
        """Return what the last run printed."""
        return (self.folder / "log.txt").read_text()

    def _parameters(self, data: Path) -> dict[str, Any]:
        def source(part: str) -> dict[str, Any]:
            labels = "ignore" if part == "pool" else "classes"
            return {"type": "folder", "path": str(self.images / part), "labels": labels}

        prior = {"n_folds": 2, "epochs": 1, "n_bootstrap": 20}
        return {
            "data": str(data),
            "tracking": False,
            "seed": self.seed,
            "data_ingestion": {
                "labeled": [source("labeled")],
                "pool": [source("pool")],
                "test": [source("test")],
                "teacher_training": [],
            },
            "teacher": {
                "architecture": f"{self._module}:build",
                "weights": str(self.folder / "weights.safetensors"),
                "classes": list(CLASSES),
                "taps": ["first", "second"],
            },
            "pu_training": {"epochs": 1, "held_out_folds": 2, "prior_estimation": prior},
            "subset_materialization": {"rule": "nnpu", "criterion": "quantile", "budget": 10},
        }

    def _draw_images(self) -> None:
        pool = self.images / "pool"
        for number in range(N_POOL):
            _draw(pool / f"{number:02d}.bmp", (number, 0))
        for part in ("labeled", "test"):
            for position, name in enumerate(CLASSES):
                for number in range(N_PER_CLASS):
                    file = self.images / part / name / f"{number}.bmp"
                    seed = 100 * (1 + position) + number + 50 * (part == "test")
                    _draw(file, (seed, 7))


def _draw(file: Path, seed: tuple[int, int]) -> None:
    """Write an 8x8 gray image; all BMP files of a size have equally many bytes."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def contents(data: Path) -> dict[str, Any]:
    """Return what the stages made, without the names of shards, which depend on their history."""
    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.storage.sharded_table import ShardedTable
    from pu_kd_pipeline.storage.table import read_table

    found: dict[str, Any] = {}
    for part in ("labeled", "pool", "test"):
        store = ImageStore.open(data / "02_intermediate" / f"{part}_images")
        rows = np.arange(len(store))
        found[part] = [store.index["id"].tolist(), store.read(rows).tobytes()]
    for part in ("labeled", "pool"):
        table = ShardedTable.open(data / "04_feature" / f"{part}_features")
        found[f"{part}_features"] = table.arrays("descriptor").tobytes()
    scores = ShardedTable.open(data / "07_model_output" / "pool_scores").to_pandas()
    found["scores"] = scores.to_csv()
    manifest = read_table(data / "05_model_input" / "manifest.parquet")
    found["manifest"] = manifest.to_csv()
    classifier = data / "06_models" / "pu_classifier"
    for file in ("weights.safetensors", "card.json"):
        found[file] = (classifier / file).read_bytes()
    return found


# --- in the process of a run ----------------------------------------------------------------------


def _run(run: StageRun, folder: Path, parameters: dict[str, Any], log: Path) -> None:
    """Run the command `kedro run` with everything printed to a file."""
    import contextlib

    import torch
    import yaml
    from kedro.framework.startup import bootstrap_project

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(PROJECT)
    os.environ["COLUMNS"] = "250"
    config = folder / "parameters.yml"
    config.write_text(yaml.safe_dump({"run": {"params": parameters}}))
    arguments = [f"--pipelines={','.join(run.stages)}", f"--config={config}"]
    if run.force:
        arguments.append("--force")
    if run.kill_before is not None:
        kill_before_rename(run.kill_before)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with contextlib.chdir(PROJECT):
        bootstrap_project(PROJECT)
        from pu_kd_pipeline.cli.commands import run as command

        command.main(arguments, prog_name="run", standalone_mode=True)
