"""The log of a run: a line per message without a terminal, and warnings repeated at the end."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

import pytest
import rich
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager, _register_hooks
from kedro.logging import RichHandler
from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.hooks.log_lines import LineHandler, write_plain_lines_without_terminal
from pu_kd_pipeline.hooks.run_log import (
    DOUBTS,
    MAX_HELD,
    MAX_REPEATED,
    N_RECENT_MESSAGES,
    RunLogHooks,
    WarningCollector,
)
from pu_kd_pipeline.reporting import findings
from tests.conftest import PROJECT

PATH = "/data/" + "a_long_name_of_a_folder/" * 30
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger whose messages reach the handlers of the root: those that a test adds."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.handlers.clear()
    excepthook = sys.excepthook
    logger = logging.getLogger("pu_kd_pipeline.test_run_log")
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(logging.NOTSET)
    root.handlers[:] = handlers
    sys.excepthook = excepthook


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_in_a_file_each_message_is_one_line(logger, monkeypatch):
    logging.getLogger().addHandler(RichHandler(show_path=False))
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("COLUMNS", "80")
    write_plain_lines_without_terminal()
    logger.info("Report: %s", PATH)
    logger.warning("one [red]warning[/red] of 100 %")

    first, second = output.getvalue().splitlines()
    assert re.fullmatch(rf"{STAMP} INFO     Report: {PATH}", first)
    assert re.fullmatch(rf"{STAMP} WARNING  one \[red\]warning\[/red\] of 100 %", second)


def test_a_python_warning_ends_in_no_empty_line(logger, monkeypatch):
    logging.getLogger().addHandler(RichHandler(show_path=False))
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    write_plain_lines_without_terminal()
    # As `logging.captureWarnings` logs them.
    logging.getLogger("py.warnings").warning("%s", "x.py:1: UserWarning: old\n")
    assert output.getvalue().endswith("x.py:1: UserWarning: old\n")


def test_level_filters_and_format_of_the_configuration_stay(logger, monkeypatch):
    handler = RichHandler(level=logging.WARNING)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logging.getLogger().addHandler(handler)
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    write_plain_lines_without_terminal()
    logger.info("left out")
    logger.warning("secret")
    logger.warning("shown")
    assert output.getvalue() == "pu_kd_pipeline.test_run_log: shown\n"


@pytest.mark.parametrize("where", ["terminal", "own console", "own handler"])
def test_other_handlers_stay(logger, monkeypatch, where):
    handler: logging.Handler = RichHandler()
    if where == "own console":
        handler = RichHandler(console=rich.console.Console(file=io.StringIO()))
    if where == "own handler":
        handler = logging.StreamHandler(io.StringIO())
    root = logging.getLogger()
    root.addHandler(handler)
    monkeypatch.setattr(sys, "stdout", Terminal() if where == "terminal" else io.StringIO())
    write_plain_lines_without_terminal()
    assert handler in root.handlers
    assert not any(isinstance(each, LineHandler) for each in root.handlers)


def test_handlers_of_single_loggers_write_lines_too(logger, monkeypatch):
    logger.addHandler(RichHandler())
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    write_plain_lines_without_terminal()
    logger.info("Report: %s", PATH)
    logger.handlers.clear()
    assert f"Report: {PATH}\n" in output.getvalue()


def test_a_closed_standard_output_stops_nothing(logger, monkeypatch, capsys):
    logging.getLogger().addHandler(RichHandler())
    monkeypatch.setattr(sys, "stdout", None)
    write_plain_lines_without_terminal()
    logger.warning("nobody reads this")
    assert "Logging error" not in capsys.readouterr().err


def test_a_broken_pipe_ends_the_main_thread_alone(logger, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    logging.getLogger().addHandler(LineHandler())
    finished = []

    def work() -> None:
        logger.info("MLflow answers again")
        finished.append(True)

    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert finished
        with pytest.raises(SystemExit):
            logger.info("a node ran")


def collected(logger: logging.Logger) -> WarningCollector:
    collector = WarningCollector()
    logging.getLogger().addHandler(collector)
    return collector


def test_warnings_are_repeated_once_with_their_number(logger):
    collector = collected(logger)
    for name in ("a", "b", "a", "a"):
        logger.warning("no %s", name)
    # Still in sight, unless something else was printed.
    assert collector.repeated(is_far=False) == ["no a (3 times)"]
    assert collector.repeated(is_far=True) == ["no a (3 times)", "no b"]


@pytest.mark.parametrize("n", [N_RECENT_MESSAGES, N_RECENT_MESSAGES + 1])
def test_a_warning_that_is_in_sight_is_not_repeated(logger, n):
    collector = collected(logger)
    logger.warning("no a")
    for _ in range(n):
        logger.info("more")
    assert collector.repeated(is_far=False) == ["no a"] * (n > N_RECENT_MESSAGES)


def test_a_message_that_cannot_be_formatted_stops_nothing(logger, capsys):
    collector = WarningCollector()
    for text, *values in (("%d items", "x"), ("no %s", "a")):
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, text, tuple(values), None)
        collector.handle(record)
    assert "Logging error" in capsys.readouterr().err
    assert collector.repeated(is_far=True) == ["no a"]


def test_the_number_of_warnings_that_are_held_is_bounded(logger):
    collector = collected(logger)
    for number in range(MAX_HELD + 5):
        logger.warning("no %d", number)
    expected = [f"no {number}" for number in range(MAX_REPEATED)]
    n_more = MAX_HELD - MAX_REPEATED
    last = f"and more than {n_more:,} others, in the log above"
    assert collector.repeated(is_far=True) == [*expected, last]


class Warns:
    """Hooks that warn before the first node, as checks of the configuration do."""

    @hook_impl
    def after_context_created(self) -> None:
        logging.getLogger("pu_kd_pipeline.test_run_log").warning("checked early")


@pytest.mark.parametrize("output", ["metrics", "history"])
@pytest.mark.parametrize("fails", [False, True])
def test_warnings_of_checks_and_doubts_that_no_summary_has_are_repeated(
    output, fails, logger, capsys
):
    # The name is that of the logger which reports doubts.
    assert findings.logger.name == DOUBTS
    manager = _create_hook_manager()
    # In the order of the settings, where these hooks are the first.
    _register_hooks(manager, (RunLogHooks(), Warns()))
    manager.hook.after_context_created(context=None)
    findings.logger.warning("a doubt")
    for _ in range(N_RECENT_MESSAGES + 1):
        logger.info("more")

    pipeline = Pipeline([Node(len, "history" if output == "metrics" else "scores", output)])
    arguments = {"run_params": {"runner": "a runner"}, "pipeline": pipeline, "catalog": None}
    if fails:
        manager.hook.on_pipeline_error(error=ValueError(), **arguments)
    else:
        manager.hook.after_pipeline_run(run_result={}, **arguments)
    doubts = [] if output == "metrics" and not fails else ["- a doubt"]
    expected = ["Warnings of this run:", "- checked early", *doubts]
    assert capsys.readouterr().out.splitlines() == expected


WARNINGS = """
import logging

logger = logging.getLogger("tiny.nodes")
for number in range({n}):
    logger.warning("image %d is dark", number)
"""


@pytest.fixture(scope="module")
def warned(kedro, tiny_project, tmp_path_factory):
    """What a run prints into pipes of 80 columns: (stdout, stderr) by mode of its training."""
    module = tiny_project / "src" / "tiny" / "pipeline_registry.py"
    text = module.read_text()
    body = WARNINGS.format(n=MAX_REPEATED + 2).replace("\n", "\n    ")
    module.write_text(
        text.replace('    Path(params.diary).write_text("started")\n', body + "\n", 1)
    )
    data = tmp_path_factory.mktemp("warned") / ("a_long_name_of_a_folder_" * 5)
    printed = {}
    try:
        for mode in ("finish", "fail"):
            params = f"tracking=false,data={data},training.diary={data}.txt,training.mode={mode}"
            printed[mode] = kedro("run", f"--params={params}", COLUMNS="80").communicate()
    finally:
        module.write_text(text)
    return data, printed


def test_a_run_ends_with_its_warnings(warned):
    data, printed = warned
    output, _ = printed["finish"]
    *_, last = output.partition("Warnings of this run:\n")
    expected = [f"- image {number} is dark" for number in range(MAX_REPEATED)]
    assert last.splitlines() == [*expected, "- and 2 more, in the log above"]
    # No line is broken, and the lines of nodes are those of Kedro's runner.
    assert f"MLflow: make mlflow DATA={data}    Pipeline: make viz\n" in output
    assert re.search(rf"^{STAMP} INFO     Completed node: pu_training.train$", output, re.MULTILINE)
    assert "Running node" not in output


def test_a_node_that_fails_shows_its_whole_error(warned):
    _, printed = warned
    output, errors = printed["fail"]
    assert "- image 0 is dark\n" in output
    assert "Node train: train([params:training]) -> [history] failed with error" in output
    # Python's traceback, which rich would draw in a box.
    assert errors.startswith("Traceback (most recent call last):\n")
    assert 'raise ZeroDivisionError("a bug")\nZeroDivisionError: a bug\n' in errors


def test_the_verbose_configuration_brings_everything_back(kedro, tiny_project, tmp_path):
    source = PROJECT / "conf" / "logging_verbose.yml"
    (tiny_project / "verbose.yml").write_bytes(source.read_bytes())
    diary = tmp_path / "diary.txt"
    output, errors = kedro(
        "run",
        f"--params=tracking=false,data={tmp_path},training.diary={diary}",
        KEDRO_LOGGING_CONFIG="verbose.yml",
    ).communicate()
    assert not errors
    for text in ("Kedro project tiny", "Running node: train", "Loading data from history"):
        assert re.search(rf"^{STAMP} INFO     {text}", output, re.MULTILINE), text
    assert "Pipeline execution completed" in output
