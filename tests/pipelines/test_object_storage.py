"""Runs of the demo whose image stores, features and scores are on an S3-compatible server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT, run_kedro
from tests.documentation import environments
from tests.folder_sizes import sizes_of
from tests.run_log import nodes_that_ran
from tests.s3_server import BUCKET, s3_client, s3_credentials

pytestmark = pytest.mark.slow
STAGES = "--pipelines=data_ingestion,teacher,feature_extraction,pu_training,pool_scoring"
# Several shards in each store, and a cache that does not hold all of them.
CACHE_BYTES = 5_000_000
PARAMS = ("data_ingestion.store.shard_size=300", f"cache_gb={CACHE_BYTES / 1e9}")
PREFIX = "runs/first"
TABLES = {
    "04_feature/labeled_features": "labeled_features",
    "04_feature/pool_features": "pool_features",
    "07_model_output/pool_scores": "pool_scores",
    "02_intermediate/labeled_images": "labeled_images",
    "02_intermediate/pool_images": "pool_images",
    "02_intermediate/test_images": "test_images",
    "02_intermediate/near_copies": "near_copies",
}
ENVIRONMENT = "bucket"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_credentials() as credentials:
        yield credentials


def conf_of(folder: Path, credentials: dict[str, Any]) -> Path:
    """Return a configuration with the environment that the documentation shows."""
    conf = folder / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    (conf / "local").mkdir()
    environment = conf / ENVIRONMENT
    environment.mkdir()
    shown = environments(PROJECT / "docs" / "scale.md")[ENVIRONMENT]
    assert f"s3://{BUCKET}/{PREFIX}/pool_scores" in shown["catalog.yml"]
    (environment / "catalog.yml").write_text(shown["catalog.yml"])
    (environment / "credentials.yml").write_text(yaml.safe_dump({"bucket": credentials}))
    return conf


def test_a_run_on_object_storage_is_the_run_on_disk_and_resumes_like_it(
    s3: dict[str, Any], tmp_path: Path
) -> None:
    client = s3_client(s3)
    options = [f"--conf-source={conf_of(tmp_path, s3)}", STAGES]
    here = tmp_path / "here"
    data = tmp_path / "data"

    local = run_kedro(*options, data=here, params=PARAMS)
    assert local.returncode == 0, local.stdout + local.stderr
    with sizes_of(data / ".cache", every_s=0.01) as sizes:
        first = run_kedro(*options, f"--env={ENVIRONMENT}", data=data, params=PARAMS)
    assert first.returncode == 0, first.stdout + first.stderr

    # The same files, byte for byte, and none of them here.
    n_files = 0
    for folder, name in TABLES.items():
        expected = {path.name: path.read_bytes() for path in (here / folder).iterdir()}
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/{name}/")["Contents"]
        assert {Path(entry["Key"]).name for entry in listed} == set(expected)
        for file, content in expected.items():
            found = client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}/{file}")["Body"].read()
            assert found == content, file
            n_files += 1
        assert not (data / folder).exists()
    assert n_files > 30
    assert sum(sizes) > 0
    assert max(sizes) <= CACHE_BYTES

    again = run_kedro(*options, f"--env={ENVIRONMENT}", data=data, params=PARAMS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Nothing to do" in again.stdout

    # A shard that is gone is made again, and nothing else.
    prefix = f"{PREFIX}/pool_features/"
    before = {
        entry["Key"]: (entry["ETag"], entry["LastModified"])
        for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    }
    lost = sorted(key for key in before if key.endswith(".parquet"))[1]
    client.delete_object(Bucket=BUCKET, Key=lost)
    resumed = run_kedro(*options, f"--env={ENVIRONMENT}", data=data, params=PARAMS)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert list(nodes_that_ran(resumed.stdout)) == ["feature_extraction.extract_pool_features"]
    after = {
        entry["Key"]: (entry["ETag"], entry["LastModified"])
        for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    }
    assert {key: etag for key, (etag, _) in after.items()} == {
        key: etag for key, (etag, _) in before.items()
    }
    written = {key for key in after if after[key] != before[key]}
    assert lost in written
    assert written <= {lost, f"{prefix}shards.json"}
