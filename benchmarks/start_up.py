"""Target 5, start-up: CPU time until the first node of `kedro run`, beyond an empty Kedro project.

Both runs go through Kedro's own command line, in a process of their own that ends when the first
node would run. That process reports its own CPU time: waiting for a busy machine does not count.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Measurement

PROJECT = Path(__file__).resolve().parents[1]
REPEATS = 5

EMPTY_PROJECT = {
    "pyproject.toml": """
[tool.kedro]
package_name = "empty"
project_name = "empty"
kedro_init_version = "1.7.0"
""",
    "src/empty/__init__.py": "",
    "src/empty/settings.py": "",
    "src/empty/pipeline_registry.py": """
from kedro.pipeline import Node, Pipeline


def nothing() -> int:
    return 0


def register_pipelines() -> dict:
    return {"__default__": Pipeline([Node(nothing, None, "nothing", name="nothing")])}
""",
    "conf/base/catalog.yml": "",
    "conf/local/.gitkeep": "",
}

# Node.run is called when hooks have passed and the node's input is loaded.
UNTIL_THE_FIRST_NODE = """
import os
import sys
from pathlib import Path

from kedro.framework.cli.cli import KedroCLI
from kedro.pipeline.node import Node


def report_and_exit(self, *_, **__):
    times = os.times()
    own_seconds = times.user + times.system
    seconds = own_seconds + times.children_user + times.children_system
    Path(sys.argv[1]).write_text(str(seconds))
    sys.stdout.flush()
    os._exit(0)


Node.run = report_and_exit
KedroCLI(Path.cwd()).main(["run", *sys.argv[2:]])
"""

TORCH_MODULES = """
import sys
import pu_kd_pipeline
print(sum(name.partition(".")[0] == "torch" for name in sys.modules))
"""


def write_empty_project(folder: Path) -> Path:
    """Write a Kedro project of one node that does nothing, with Kedro's own settings."""
    for name, text in EMPTY_PROJECT.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def seconds_to_first_node(project: Path, report: Path, *arguments: str) -> float:
    """Return the CPU seconds of `kedro run` in a project until its first node runs.

    Args:
        project: folder of the Kedro project.
        report: file that the process writes its CPU time to.
        arguments: further arguments of `kedro run`.
    """
    report.unlink(missing_ok=True)
    # The process ends itself in the middle of a run, so its exit code says nothing.
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_THE_FIRST_NODE, str(report), *arguments],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        raise RuntimeError(f"kedro run in {project} reached no node:\n{done.stdout}{done.stderr}")
    return float(report.read_text())


def _first_node_row(work: Path) -> Measurement:
    empty = write_empty_project(work / "empty_project")
    report = work / "cpu_seconds.txt"
    data = f"--params=data={work / 'data'}"
    # In turn, so that a busy machine slows both.
    ours = []
    theirs = []
    for _ in range(REPEATS + 1):
        ours.append(seconds_to_first_node(PROJECT, report, data))
        theirs.append(seconds_to_first_node(empty, report))
    # The first pair compiles modules and fills the page cache.
    del ours[0], theirs[0]
    more = sorted(a - b for a, b in zip(ours, theirs, strict=True))
    our_median = statistics.median(ours)
    their_median = statistics.median(theirs)
    return Measurement(
        "5",
        "`kedro run` until its first node, beyond an empty Kedro project",
        statistics.median(more),
        more[0],
        more[-1],
        "s",
        "<=",
        1.5,
        note=f"{our_median:.2f} s against {their_median:.2f} s of CPU time",
    )


def _torch_modules_row() -> Measurement:
    # In a new process: this one may have imported torch already.
    command = [sys.executable, "-c", TORCH_MODULES]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    n_modules = float(done.stdout)
    what = "torch modules that `import pu_kd_pipeline` imports"
    return Measurement("5", what, n_modules, n_modules, n_modules, "x", "<=", 0.0, note="a count")


def cpu_seconds(project: Path, *arguments: str) -> float:
    """Return the CPU seconds of a whole `kedro run` in a project, with all processes it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "kedro", "run", *arguments],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"kedro run in {project} failed:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _nothing_to_do_row(work: Path) -> Measurement:
    """Return the CPU time of the demo's second run, as a multiple of an empty project's run."""
    empty = write_empty_project(work / "empty_project")
    arguments = ("--pipeline=full", f"--params=data={work / 'finished'}")
    cpu_seconds(PROJECT, *arguments)
    ours = []
    theirs = []
    for _ in range(REPEATS + 1):
        ours.append(cpu_seconds(PROJECT, *arguments))
        theirs.append(cpu_seconds(empty))
    # The first pair compiles modules and fills the page cache.
    del ours[0], theirs[0]
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return Measurement(
        "5",
        "`kedro run` with nothing to do, relative to the run of an empty Kedro project",
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        "x",
        "<=",
        2.0,
        note=f"{statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s of CPU",
    )


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 5."""
    yield _first_node_row(work)
    yield _torch_modules_row()
    yield _nothing_to_do_row(work)
