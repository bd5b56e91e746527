"""How commands end: other programs decide by the exit code whether to try again."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pu_kd_pipeline.cli.commands import cli
from pu_kd_pipeline.cli.errors import exit_code, exit_with_message
from pu_kd_pipeline.devices import MemoryShortage
from pu_kd_pipeline.errors import ExitCode, InputError, LimitMissedError
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.incremental.locks import locked


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("row 3 has no image"), ExitCode.USER_ERROR),
        (LimitMissedError("certify: the agreement is too low"), ExitCode.LIMIT_MISSED),
        (MemoryShortage("use smaller batches"), ExitCode.FAILURE),
        (SourceLostError("it is no longer mounted"), ExitCode.FAILURE),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.FAILURE),
        (ConnectionResetError("by peer"), ExitCode.FAILURE),
        (ZeroDivisionError(), ExitCode.FAILURE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_the_code_of_its_kind_also_as_a_cause(
    error: Exception, expected: ExitCode
) -> None:
    assert exit_code(error) is expected
    # Kedro raises errors of its own about errors in nodes.
    outer = RuntimeError("the node failed")
    outer.__cause__ = error
    assert exit_code(outer) is expected


def test_a_bug_has_its_traceback_and_not_the_code_of_a_missed_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rich's, which Kedro installs, may write past what this test reads.
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def fail() -> None:
        raise KeyError("n_images")

    with pytest.raises(SystemExit) as stop:
        try:
            fail()
        except KeyError as error:
            exit_with_message(error)
    assert stop.value.code == ExitCode.FAILURE
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "in fail" in printed


def test_a_data_folder_that_another_run_is_using_is_tried_again(tmp_path: Path) -> None:
    with (
        locked(tmp_path, writes=["student"], reads=[]),
        pytest.raises(InputError) as refused,
        locked(tmp_path, writes=["student"], reads=[]),
    ):
        pass
    assert exit_code(refused.value) is ExitCode.FAILURE


NEW_ENV = "new-env mine --teacher=a.pt --labeled=a --pool=b --test=c"


@pytest.mark.parametrize(
    ("command", "interrupted"),
    [
        ("containers open-run", "kedro.framework.session.KedroSession.create"),
        (NEW_ENV, "pu_kd_pipeline.cli.new_environment.make_environment"),
    ],
)
def test_ctrl_c_ends_every_command_with_the_code_of_its_signal(
    monkeypatch: pytest.MonkeyPatch, command: str, interrupted: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupted, interrupt)
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 130
    assert result.output == "Stopped by Ctrl-C.\n"


def test_an_unknown_option_has_the_code_of_click(kedro) -> None:
    process = kedro("run", "--pipelin=evaluation")
    _, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.USAGE == click.UsageError.exit_code
    assert "No such option" in err
