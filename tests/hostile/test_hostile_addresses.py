"""Credentials in the addresses of sources, and control characters in names, through the commands.

One process runs all cases; each has a data folder of its own.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import PROJECT
from tests.images.sources.examples import parquet_file

USER = "alice"
PASSWORD = "pa55word"
TOKEN = "t0ken.of/alice"
SECRETS = (PASSWORD, TOKEN, "t0ken", "0ther")
ESCAPE = "\x1b[2J\x1b]8;;http://evil\x07\r\x9b31m\u202e"
SHOWN = r"\x1b[2J\x1b]8;;http:"


class PrivateFiles(SimpleHTTPRequestHandler):
    """Serves a folder to a user with a password."""

    def do_GET(self) -> None:
        if self.is_allowed():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.is_allowed():
            super().do_HEAD()

    def is_allowed(self) -> bool:
        given = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        is_allowed = self.headers.get("Authorization") == f"Basic {given}"
        if not is_allowed:
            self.send_error(401)
        return is_allowed

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a server with the folder `pool` and the file `more.parquet`."""
    root = tmp_path_factory.mktemp("www")
    write_images(root / "pool", 30)
    parquet_file(root / "more.parquet", 20)
    handler = partial(PrivateFiles, directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def write_images(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(n):
        pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def pool_of(*sources: dict[str, Any]) -> str:
    """Return an environment whose pool has these sources, as YAML, which JSON is a part of."""
    store = {"max_quarantined_share": 0.9}
    return json.dumps({"data_ingestion": {"pool": list(sources), "store": store}})


def private_pool(address: str, password: str, token: str) -> str:
    url = f"http://{USER}:{password}@{address}"
    return pool_of(
        {"type": "folder", "path": f"{url}/pool"},
        {"type": "parquet", "path": f"{url}/more.parquet?token={token}", "name": "more"},
    )


@pytest.fixture(scope="module")
def outcomes(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> output, exit code and data folder of `kedro run`."""
    folder = tmp_path_factory.mktemp("addresses")
    names = folder / "images"
    for number in range(3):
        write_images(names / f"{ESCAPE.replace('/', '')}{number}", 2)

    conf = folder / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    shutil.copy(PROJECT / "conf" / "logging.yml", conf)
    environments = {
        "right": private_pool(address, PASSWORD, TOKEN),
        "rotated": private_pool(address, PASSWORD, "0ther"),
        "wrong": private_pool(address, "0ther", TOKEN),
        "names": pool_of({"type": "folder", "path": str(names), "labels": "classes"}),
    }
    cases = {}
    for name, content in environments.items():
        file = conf / name / "parameters_data_ingestion.yml"
        file.parent.mkdir()
        file.write_text(content)
        data = folder / name.replace("rotated", "right")
        cases[name] = ["--pipeline=data_ingestion", f"--params=data={data}"]

    result = subprocess.run(
        [sys.executable, PROJECT / "tests" / "hostile" / "run_cases.py", conf, json.dumps(cases)],
        env={**os.environ, "COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    outcomes = {}
    for line in result.stdout.splitlines():
        if line.startswith("{"):
            outcome = json.loads(line)
            outcomes[outcome["name"]] = outcome
            outcome["data"] = folder / outcome["name"]
            # What the logging of the process wrote
            outcome["said"] += result.stderr
    outcomes["right"]["printed"] = result.stdout
    return outcomes


def test_no_secret_of_an_address_is_written_or_shown(outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes["right"]
    assert outcome["code"] == 0, outcome["said"]
    assert "***@" in outcome["printed"]
    for secret in SECRETS:
        assert secret not in outcome["printed"]
        for name in ("right", "wrong"):
            files = [path for path in outcomes[name]["data"].rglob("*") if path.is_file()]
            assert files
            for file in files:
                assert secret.encode() not in file.read_bytes(), file


def test_sources_are_named_without_credentials(outcomes: dict[str, dict[str, Any]]) -> None:
    store = outcomes["right"]["data"] / "02_intermediate" / "pool_images"
    index = pd.concat(map(pd.read_parquet, sorted(store.glob("*.index.parquet"))))
    assert set(index["source"]) == {"pool", "more"}
    ids = set(index.loc[index["source"] == "more", "id"])
    assert "more/more:0" in ids


def test_another_token_reads_nothing_again(outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes["rotated"]
    assert outcome["code"] == 0, outcome["said"]
    assert "Nothing to do" in outcome["said"]


def test_a_wrong_password_is_one_message_without_it(outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes["wrong"]
    assert outcome["code"] == ExitCode.USER_ERROR
    error = outcome["said"].partition("Error: ")[2]
    assert "http://***@127.0.0.1" in error
    assert "check the address, the network and your credentials" in error


def test_control_characters_in_names_are_shown(outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes["names"]
    assert outcome["code"] == ExitCode.USER_ERROR
    assert SHOWN in outcome["said"]
    # The terminal's own colors are none of the names': this output is no terminal.
    for character in "\x1b\x07\r\x9b\u202e":
        assert character not in outcome["said"]


def test_a_command_started_in_a_folder_of_the_project_reads_the_same_files(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    environment = conf / "inside" / "parameters_data_ingestion.yml"
    environment.parent.mkdir()
    # The first is there as seen from the project, the second as seen from the working directory.
    sources = [{"type": "folder", "path": path} for path in ("docs/results", "pu_kd_pipeline")]
    environment.write_text(pool_of(*sources))
    command = ["explain", "--pipeline=data_ingestion", "--env=inside", f"--conf-source={conf}"]
    result = subprocess.run(
        [sys.executable, "-m", "kedro", *command, f"--params=data={tmp_path / 'data'}"],
        cwd=PROJECT / "src",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == ExitCode.USER_ERROR
    assert result.stderr.splitlines()[-1] == (
        "Error: data_ingestion.pool[1].path: there is no pu_kd_pipeline "
        "(edit parameters_data_ingestion.yml)"
    )
