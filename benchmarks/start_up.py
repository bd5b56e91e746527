"""Start-up, target 5: CPU seconds until the first node of `kedro run`, beyond those of an empty Kedro project.

Both runs go through Kedro's own command line, in a process of their own that ends when the first node would run. What
they took is told by that process, so that waiting for a busy machine does not count.
"""

from __future__ import annotations

import os
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


def tell(self, *_, **__):
    times = os.times()
    Path(sys.argv[1]).write_text(str(times.user + times.system + times.children_user + times.children_system))
    sys.stdout.flush()
    os._exit(0)


Node.run = tell
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
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def seconds_to_first_node(project: Path, told: Path, *arguments: str) -> float:
    """Return the CPU seconds of `kedro run` in a project until its first node runs."""
    told.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_THE_FIRST_NODE, str(told), *arguments],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not told.exists():
        raise RuntimeError(f"kedro run in {project} reached no node:\n{done.stdout}{done.stderr}")
    return float(told.read_text())


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 5."""
    empty, told = write_empty_project(work / "empty_project"), work / "cpu_seconds.txt"
    ours_arguments = (f"--params=data={work / 'data'}",)
    ours, theirs = [], []
    for number in range(REPEATS + 1):
        pair = (
            seconds_to_first_node(PROJECT, told, *ours_arguments),
            seconds_to_first_node(empty, told),
        )
        if number:  # the first pair compiles modules and fills the page cache
            ours.append(pair[0])
            theirs.append(pair[1])
    more = sorted(a - b for a, b in zip(ours, theirs, strict=True))
    yield Measurement(
        "5",
        "`kedro run` until its first node, beyond an empty Kedro project",
        statistics.median(more),
        more[0],
        more[-1],
        "s",
        "<=",
        1.5,
        note=f"{statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s of CPU time",
    )
    command = [sys.executable, "-c", TORCH_MODULES]
    n_modules = float(
        subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    )
    what = "torch modules that `import pu_kd_pipeline` imports"
    yield Measurement("5", what, n_modules, n_modules, n_modules, "x", "<=", 0.0, note="a count")
    what = "`kedro run` with nothing to do"
    note = "runs are not skipped yet: each stage runs again, and reuses the shards that are still right"
    yield Measurement("5", what, None, None, None, "s", "<=", 5.0, note=note)
