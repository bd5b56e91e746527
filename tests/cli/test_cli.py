"""What a user reads when something is wrong: one message, no traceback, exit code 65."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from pu_kd_pipeline.cli.errors import user_message
from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.params.validation import check_parameters, unknown_name


def error_of(kedro, *arguments: str) -> str:
    """Return the message of a command that fails; nothing else is printed."""
    process = kedro("run", "--params=tracking=false", *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.USER_ERROR, out + err
    assert "Traceback" not in out + err
    # Kedro's own log of the failure would hide the message.
    assert "WARNING" not in out
    assert "ERROR" not in out
    assert err.startswith("Error: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--pipeline=evalution"],
            "Error: the pipeline `evalution` is not known; did you mean `evaluation`?\n",
        ),
        (
            ["--pipeline=evaluation", "--params=tracking=false,data=empty"],
            "Error: Saved input of this run is missing.\n"
            "  - `history` ({tiny}/empty/07_model_output/history.json): "
            "written by `kedro run --pipeline=pu_training`\n"
            "Run what writes it first, or everything with `kedro run --pipeline=full`.\n",
        ),
        (
            ["--params=tracking=false,data=refused,training.mode=refuse"],
            "Error: images.parquet, row 3: there is no image. Remove the row.\n",
        ),
        # Faults in files and on the command line, and all of them at once.
        (
            ["--env=odd", "--params=tracking=false,trainng.epochs=3,training.mode=dance"],
            "Error: The parameters cannot be used.\n"
            "  - --params: the block `trainng` is not known; did you mean `training`?\n"
            "  - --params: `training.mode` is 'dance': "
            "input should be 'finish', 'fail', 'refuse' or 'wait'\n"
            "  - conf/odd/parameters_training.yml: `training.optimizer.learning_rate` is -1: "
            "input should be greater than 0 (of the first epoch)\n",
        ),
        (
            ["--env=broken"],
            "Error: The configuration cannot be read.\n"
            "Invalid YAML or JSON file {tiny}/conf/broken/parameters_training.yml, "
            "unable to read line 1, position 0.\n",
        ),
        (
            ["--env=elsewhere"],
            "Error: The configuration cannot be read.\n"
            "Given configuration path either does not exist or is not a valid directory: "
            "{tiny}/conf/elsewhere\n",
        ),
        (["--nodes=trian"], "Error: Pipeline does not contain nodes named ['trian'].\n"),
    ],
    ids=[
        "pipeline",
        "saved input",
        "input file",
        "parameters",
        "broken file",
        "environment",
        "node",
    ],
)
def test_what_a_user_can_fix_is_one_message(kedro, tiny_project, arguments, expected):
    assert error_of(kedro, *arguments) == expected.format(tiny=tiny_project)


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    learning_rate: float = Field(gt=0, description="of the first epoch")


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str


class Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: Literal["nnpu", "upu"]
    optimizer: Optimizer | None
    sources: tuple[Source, ...] = ()


GOOD = {"method": "nnpu", "optimizer": {"learning_rate": 0.1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A key that is similar to a known one, and a key that is similar to none.
        ({"metod": 1}, "stage.yml: the key `stage.metod` is not known; did you mean `method`?"),
        (
            {"zzz": 1},
            "stage.yml: the key `stage.zzz` is not known; "
            "known are `method`, `optimizer`, `sources`",
        ),
        ({"method": "pu"}, "stage.yml: `stage.method` is 'pu': input should be 'nnpu' or 'upu'"),
        (
            {"optimizer": {"learning_rat": 1}},
            "stage.yml: the key `stage.optimizer.learning_rat` is not known; "
            "did you mean `learning_rate`?",
        ),
        (
            {"optimizer": {}},
            "stage.yml: the key `stage.optimizer.learning_rate` is missing (of the first epoch)",
        ),
        (
            # Pydantic also reports that the tuple is too short, which is left out.
            {"sources": [{"pth": "c"}]},
            "stage.yml: the key `stage.sources.0.path` is missing\n"
            "  - stage.yml: the key `stage.sources.0.pth` is not known; did you mean `path`?",
        ),
        (
            {"sources": [{"path": "a"}, {"path": "b", "pth": "c"}]},
            "stage.yml: the key `stage.sources.1.pth` is not known; did you mean `path`?",
        ),
    ],
)
def test_a_fault_names_file_key_value_and_the_nearest_known_key(changes, message):
    with pytest.raises(InputError) as refusal:
        check_parameters(
            {"stage": GOOD | changes},
            {"stage": Stage},
            files={"stage": Path("stage.yml")},
            given={},
        )
    assert f"\n  - {message}" in str(refusal.value)


def test_a_missing_block_and_an_unknown_block_are_reported_together():
    with pytest.raises(InputError) as refusal:
        check_parameters(
            {},
            {"stage": Stage},
            files={},
            # `data` is a parameter of the run and not a block.
            given={"stge": 1, "data": "x"},
            other_names=["data", "stage"],
        )
    assert str(refusal.value) == (
        "The parameters cannot be used.\n"
        "  - --params: the block `stge` is not known; did you mean `stage`?\n"
        "  - the block `stage` is missing: add it to conf/base/parameters_stage.yml"
    )


def test_good_parameters_come_back_as_their_types():
    blocks = check_parameters({"stage": GOOD}, {"stage": Stage}, files={}, given={})
    assert blocks == {"stage": Stage(method="nnpu", optimizer=Optimizer(learning_rate=0.1))}


def test_a_bug_keeps_its_traceback_also_while_a_users_fault_is_handled():
    # Python then sets the user's fault as the context of the bug, which is not its cause.
    with pytest.raises(ZeroDivisionError) as fault:
        try:
            raise InputError("the file is odd")
        except InputError:
            raise ZeroDivisionError  # noqa: B904
    assert user_message(fault.value) is None
    assert user_message(ValueError("an unexpected value")) is None


def test_a_users_fault_is_found_as_the_cause_of_another_error():
    with pytest.raises(RuntimeError) as wrapped:
        try:
            raise InputError("the file is odd")
        except InputError as cause:
            raise RuntimeError("while loading") from cause
    assert user_message(wrapped.value) == "the file is odd"


def test_an_unknown_name_without_a_similar_one_lists_the_known_names():
    assert (
        unknown_name("the rule `x`", "x", ["nnpu", "all"])
        == "the rule `x` is not known; known are `all`, `nnpu`"
    )
