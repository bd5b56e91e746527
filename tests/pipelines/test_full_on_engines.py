"""`full` gives the same files with each engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import run_kedro
from tests.pipelines.finished_run import FEATURES, MODEL_INPUT, MODEL_OUTPUT, MODELS

# Shards of which each worker makes several.
PARAMS = ("data_ingestion.store.shard_size=500",)
RESULTS = (
    f"{FEATURES}/labeled_features",
    f"{FEATURES}/pool_features",
    f"{MODEL_OUTPUT}/pool_scores",
    f"{MODEL_INPUT}/manifest.parquet",
    f"{MODEL_INPUT}/weight_vectors.parquet",
    f"{MODELS}/pu_classifier/weights.safetensors",
    f"{MODELS}/student_model/weights.safetensors",
    f"{MODEL_OUTPUT}/test_predictions.parquet",
)


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """A function that runs `full` with an engine and returns what it wrote: name -> content."""

    def run(kind: str) -> dict[str, bytes]:
        data = tmp_path_factory.mktemp(kind)
        params = (*PARAMS, f"engine.kind={kind}", "engine.n_workers=2")
        result = run_kedro("--pipeline=full", data=data, params=params)
        assert result.returncode == 0, result.stdout + result.stderr
        found = {}
        for name in RESULTS:
            place = data / name
            files = [place] if place.is_file() else sorted(place.iterdir())
            for file in files:
                found[str(file.relative_to(data))] = file.read_bytes()
        return found

    return run


@pytest.fixture(scope="module")
def local_files(files_of: Callable[[str], dict[str, bytes]]) -> dict[str, bytes]:
    files = files_of("local")
    # Several shards of the pool's features and of its scores.
    assert sum(name.endswith(".parquet") for name in files) > 15
    return files


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_the_results_of_a_run_are_those_of_the_local_engine(kind, files_of, local_files):
    if kind == "ray":
        pytest.importorskip("ray")
    files = files_of(kind)
    assert files.keys() == local_files.keys()
    different = [name for name, content in files.items() if content != local_files[name]]
    assert different == []
