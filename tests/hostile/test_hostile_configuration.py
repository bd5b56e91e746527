"""Configuration files that are malformed or hostile: one sentence, exit code 1, and nothing is run from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

CANARY = "canary"
PARAMETERS, CATALOG, GLOBALS = "parameters_odd.yml", "catalog.yml", "globals.yml"

# file, content, and what the user reads
CASES: dict[str, tuple[str, bytes, str]] = {
    "tab": (PARAMETERS, b"seed:\n\t- 1\n", "Invalid YAML"),
    "twice": (PARAMETERS, b"reporting: {title: a, title: b}\n", "duplicate"),
    "list": (PARAMETERS, b"- 1\n- 2\n", "parameters_odd.yml"),
    "latin1": (PARAMETERS, "reporting: {title: café}\n".encode("latin-1"), "parameters_odd.yml"),
    "circle": (PARAMETERS, b"reporting: &a\n  title: *a\n", "parameters_odd.yml"),
    "deep": (PARAMETERS, b"reporting: " + b"[" * 1_000 + b"]" * 1_000, "parameters_odd.yml"),
    "digits": (PARAMETERS, b"seed: " + b"9" * 5_000, "parameters_odd.yml"),
    "code": (PARAMETERS, f"reporting: {{title: !!python/object/apply:os.mkdir ['{CANARY}']}}".encode(), "constructor"),
    "no_such_key": (PARAMETERS, b"reporting: {title: '${nowhere.at.all}'}\n", "nowhere"),
    "no_such_resolver": (PARAMETERS, b"reporting: {title: '${summon:x}'}\n", "summon"),
    "half_interpolation": (PARAMETERS, b"reporting: {title: '${'}\n", "parameters"),
    "block_null": (PARAMETERS, b"reporting:\n", "`reporting`"),
    "block_number": (PARAMETERS, b"reporting: 3\n", "`reporting`"),
    "block_list": (PARAMETERS, b"reporting: [1]\n", "Cannot merge DictConfig with ListConfig"),
    "key_null": (PARAMETERS, b"reporting: {~: 4}\n", "Incompatible key type"),
    "catalog_text": (CATALOG, b"metrics: here\n", "metrics"),
    "catalog_bad_type": (CATALOG, b"metrics: {type: json.JsonDatset, filepath: x}\n", "metrics"),
    "catalog_function_type": (CATALOG, f"metrics: {{type: os.mkdir, path: {CANARY}}}\n".encode(), "metrics"),
    "catalog_bad_argument": (CATALOG, b"metrics: {type: json.JSONDataset, filepath: x.json, surprise: 1}\n", "metrics"),
    "globals_list": (GLOBALS, b"- seed\n", "globals"),
    "globals_circle": (GLOBALS, b"seed: ${globals:seed}\n", "seed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `kedro run` said and ended with, case by case."""
    folder = tmp_path_factory.mktemp("configurations")
    shutil.copytree(PROJECT / "conf" / "base", folder / "conf" / "base")
    shutil.copy(PROJECT / "conf" / "logging.yml", folder / "conf")
    for name, (file, content, _) in CASES.items():
        (folder / "conf" / name).mkdir()
        (folder / "conf" / name / file).write_bytes(content)
    cases = {
        name: ["--pipeline=reporting", f"--params=data={folder / 'data'},tracking=false"]
        for name in CASES
    }
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "run_cases.py"), str(folder / "conf"), json.dumps(cases)],
        env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True, check=False, timeout=300, cwd=folder,
    )  # fmt: skip
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(cases), result.stdout + result.stderr
    assert not (folder / CANARY).exists()
    assert not (PROJECT / CANARY).exists()
    assert not (folder / "data").exists()  # nothing was written
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file_is_one_sentence_and_exit_code_1(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]
    assert outcome["code"] == 1, outcome["said"][-3_000:]
    assert "Traceback" not in outcome["said"]
    sentence = outcome["said"].partition("Error: ")[2]
    assert CASES[case][2] in sentence
    assert len(sentence) < 2_000
