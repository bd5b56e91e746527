"""How often a pilot is right: its forecasts next to the trainings that they are about.

    python -m experiments.pilot_validation --env mnist_characters --updates 3000 \
        --lengths 100 200 400 --seeds 0 1 2

It reads images, teacher and features of an environment whose stage `feature_extraction` has run,
and prints one line of JSON per seed. After the pilot, the candidate that it recommends, the present
parameters and the controls are trained on the whole pool with the full number of updates, and
measured on the images of the pilot, which none of them learned from.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.images.subset import ImageSample
from pu_kd_pipeline.params.pilot import PilotParams
from pu_kd_pipeline.pilot import study
from pu_kd_pipeline.pilot.halving import Candidates, Halving, Trial, measured_images
from pu_kd_pipeline.pilot.inputs import TrialInputs
from pu_kd_pipeline.pilot.judgment import Judgment
from pu_kd_pipeline.pilot.sample import PoolSample
from pu_kd_pipeline.storage.sharded_table import InMemoryTable

PROJECT = Path(__file__).resolve().parents[1]
INPUTS = (
    "teacher_model",
    "labeled_images",
    "pool_images",
    "test_images",
    "duplicates",
    "labeled_features",
    "params:yardstick",
)
BLOCKS = ("pu_training", "subset_materialization", "class_weighting", "distillation", "relatedness")


class Data:
    """What a pilot reads of an environment.

    Args:
        catalog: of the environment.
        n_updates: of the full trainings.
    """

    def __init__(self, catalog: DataCatalog, n_updates: int) -> None:
        self.pool_features = catalog.load("pool_features")
        self.params: PilotParams = catalog.load("params:pilot")
        blocks = Blocks(**{name: catalog.load(f"params:{name}") for name in BLOCKS})
        distillation = blocks.distillation.model_copy(update={"n_updates": n_updates})
        self.inputs = TrialInputs(
            *map(catalog.load, INPUTS), blocks=replace(blocks, distillation=distillation)
        )

    def whole_pool(self, like: PoolSample) -> PoolSample:
        """Return the whole pool as a sample."""
        pool = self.inputs.pool_images
        images = ImageSample.of(pool, np.arange(len(pool)))
        tables = list(self.pool_features.shards())
        # One shard, as the images of a sample have.
        name = like.features.names[0]
        whole = InMemoryTable.of_shards({name: _joined(tables)})
        return PoolSample(images, whole, like.pace)


def _joined(tables: list[Any]) -> Any:
    import pyarrow as pa

    metadata = tables[0].schema.metadata
    return pa.concat_tables(tables).combine_chunks().replace_schema_metadata(metadata)


def validate(data: Data, seed: int) -> dict[str, Any]:
    """Return what the pilot of a seed said, and what came out."""
    params = data.params.model_copy(update={"seed": seed})
    inputs = replace(data.inputs, blocks=data.inputs.blocks.with_seed(seed))
    started = time.perf_counter()
    sample = inputs.draw_sample(params)
    measured = measured_images(inputs, sample, params)
    candidates = Candidates(params.chosen, study.controls_of(sample))
    deadline = started + 60 * params.minutes
    outcome = Halving(inputs, sample, measured, candidates, params, deadline).run()
    seconds = time.perf_counter() - started
    n_updates = inputs.blocks.distillation.n_updates
    facts = Judgment(outcome.trials, outcome.present, n_updates, params.least_gain).facts()
    variants = {
        name: params.chosen[name]
        for name in {facts["leader"], facts["recommended"], outcome.present}
        if name in params.chosen
    }
    full = params.model_copy(update={"n_rounds": 1, "lengths": (n_updates,)})
    trainings = Candidates(variants, candidates.controls)
    whole = data.whole_pool(sample)
    deadline = time.perf_counter() + 60 * params.minutes
    actual = Halving(inputs, whole, measured, trainings, full, deadline).run()
    reached = {trial.candidate: trial for trial in actual.trials}
    return {
        "seed": seed,
        "minutes": seconds / 60,
        "lengths": sorted({trial.n_updates for trial in outcome.trials}),
        "n_updates": n_updates,
        "n_sampled": len(sample.images),
        "n_measured": len(measured),
        **{key: facts[key] for key in ("leader", "recommended", "verdict", "limiting_control")},
        "agreement": _checked(facts["agreement"], reached[facts["recommended"]].agreement),
        "gains": {
            control: _checked(gain["forecast"], _gain(reached, facts["leader"], control))
            for control, gain in facts["gains"].items()
        },
        "reached": {name: trial.agreement for name, trial in reached.items()},
        "divergence": {name: trial.kl for name, trial in reached.items()},
    }


def _gain(reached: dict[str, Trial], leader: str, control: str) -> float:
    return reached[leader].agreement - reached[control].agreement


def _checked(forecast: dict[str, float], actual: float) -> dict[str, Any]:
    is_inside = forecast["lower"] <= actual <= forecast["upper"]
    return {**forecast, "actual": actual, "is_inside": bool(is_inside)}


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pilot_validation")
    parser.add_argument("--env", required=True, help="folder of conf/")
    parser.add_argument("--data", help="folder of its outputs, if it is not the environment's")
    parser.add_argument("--updates", type=int, required=True, help="of the full trainings")
    parser.add_argument("--lengths", type=int, nargs="+", help="of the rounds; none: by the time")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    bootstrap_project(PROJECT)
    runtime = {"data": options.data} if options.data else None
    with KedroSession.create(PROJECT, env=options.env, runtime_params=runtime) as session:
        data = Data(session.load_context().catalog, options.updates)
    changes: dict[str, Any] = {"minutes": options.minutes}
    if options.lengths:
        changes |= {"lengths": tuple(options.lengths), "n_rounds": len(options.lengths)}
    data.params = data.params.model_copy(update=changes)
    for seed in options.seeds:
        print(json.dumps(validate(data, seed)), flush=True)


if __name__ == "__main__":
    main()
