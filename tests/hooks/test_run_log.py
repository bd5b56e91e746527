"""The log of a run: a line per message where nobody watches, and warnings once more at the end."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator

import pytest
import rich
from kedro.logging import RichHandler

from pu_kd_pipeline.hooks.log_lines import LineHandler, write_plain_lines_unless_watched
from pu_kd_pipeline.hooks.run_log import MAX_REPEATED, N_MESSAGES_IN_SIGHT, WarningCollector
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
    write_plain_lines_unless_watched()
    logger.info("Report: %s", PATH)
    logger.warning("one [red]warning[/red] of 100 %")

    first, second = output.getvalue().splitlines()
    assert re.fullmatch(rf"{STAMP} INFO     Report: {PATH}", first)
    assert re.fullmatch(rf"{STAMP} WARNING  one \[red\]warning\[/red\] of 100 %", second)


def test_a_python_warning_ends_in_no_empty_line(logger, monkeypatch):
    logging.getLogger().addHandler(RichHandler(show_path=False))
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    write_plain_lines_unless_watched()
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
    write_plain_lines_unless_watched()
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
    write_plain_lines_unless_watched()
    assert handler in root.handlers
    assert not any(isinstance(each, LineHandler) for each in root.handlers)


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


@pytest.mark.parametrize("n", [N_MESSAGES_IN_SIGHT, N_MESSAGES_IN_SIGHT + 1])
def test_a_warning_that_is_in_sight_is_not_repeated(logger, n):
    collector = collected(logger)
    logger.warning("no a")
    for _ in range(n):
        logger.info("more")
    assert collector.repeated(is_far=False) == ["no a"] * (n > N_MESSAGES_IN_SIGHT)


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
