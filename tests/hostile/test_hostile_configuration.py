"""Malformed or hostile configuration files: one message, exit code 65, and nothing is executed."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import PROJECT
from tests.hostile.case_runs import outcomes_of

CANARY = "canary"
PARAMETERS = "parameters_odd.yml"
GLOBALS = "globals.yml"
# An entry of an environment replaces the one in conf/base/catalog/ as a whole.
CATALOG = "catalog.yml"
UNSAFE_TAG = f"reporting: {{title: !!python/object/apply:os.mkdir ['{CANARY}']}}\n"
UNSAFE_TYPE = f"metrics: {{type: os.mkdir, path: {CANARY}}}\n"
BAD_ARGUMENT = b"metrics: {type: json.JSONDataset, filepath: x.json, surprise: 1}\n"

# Case -> file, content, and a part of the message.
CASES: dict[str, tuple[str, bytes, str]] = {
    "tab": (PARAMETERS, b"seed:\n\t- 1\n", "Invalid YAML"),
    "twice": (PARAMETERS, b"reporting: {title: a, title: b}\n", "duplicate"),
    "list": (PARAMETERS, b"- 1\n- 2\n", "parameters_odd.yml"),
    "latin1": (PARAMETERS, "reporting: {title: café}\n".encode("latin-1"), "parameters_odd.yml"),
    "circle": (PARAMETERS, b"reporting: &a\n  title: *a\n", "parameters_odd.yml"),
    "deep": (PARAMETERS, b"reporting: " + b"[" * 1_000 + b"]" * 1_000, "parameters_odd.yml"),
    "digits": (PARAMETERS, b"seed: " + b"9" * 5_000, "parameters_odd.yml"),
    "code": (PARAMETERS, UNSAFE_TAG.encode(), "constructor"),
    "no_such_key": (PARAMETERS, b"reporting: {title: '${nowhere.at.all}'}\n", "nowhere"),
    "no_such_resolver": (PARAMETERS, b"reporting: {title: '${summon:x}'}\n", "summon"),
    "half_interpolation": (PARAMETERS, b"reporting: {title: '${'}\n", "parameters"),
    "block_null": (PARAMETERS, b"reporting:\n", "`reporting`"),
    "block_number": (PARAMETERS, b"reporting: 3\n", "`reporting`"),
    "block_list": (PARAMETERS, b"reporting: [1]\n", "Cannot merge DictConfig with ListConfig"),
    "key_null": (PARAMETERS, b"reporting: {~: 4}\n", "Incompatible key type"),
    "catalog_text": (CATALOG, b"metrics: here\n", "metrics"),
    "catalog_bad_type": (CATALOG, b"metrics: {type: json.JsonDatset, filepath: x}\n", "metrics"),
    "catalog_function_type": (CATALOG, UNSAFE_TYPE.encode(), "metrics"),
    "catalog_bad_argument": (CATALOG, BAD_ARGUMENT, "metrics"),
    "globals_list": (GLOBALS, b"- seed\n", "globals"),
    "globals_circle": (GLOBALS, b"seed: ${globals:seed}\n", "seed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> output and exit code of `kedro run`; one process runs all of them."""
    folder = tmp_path_factory.mktemp("configurations")
    conf = folder / "conf"
    data = folder / "data"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    shutil.copy(PROJECT / "conf" / "logging.yml", conf)
    for name, (file, content, _) in CASES.items():
        environment = conf / name
        environment.mkdir()
        (environment / file).write_bytes(content)

    arguments = ["--pipeline=reporting", f"--params=data={data},tracking=false"]
    cases = dict.fromkeys(CASES, arguments)
    outcomes = outcomes_of(cases, conf, timeout_s=300, working=folder)
    # No code of the files ran, and nothing was written.
    assert not (folder / CANARY).exists()
    assert not (PROJECT / CANARY).exists()
    assert not data.exists()
    return outcomes


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file_is_one_message_and_a_users_error(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]

    assert outcome["code"] == ExitCode.USER_ERROR, outcome["said"][-3_000:]
    assert "Traceback" not in outcome["said"]

    message = outcome["said"].partition("Error: ")[2]
    *_, expected = CASES[case]

    assert expected in message
    assert len(message) < 2_000
