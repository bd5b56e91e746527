"""`python -m benchmarks`: every speed target of this machine, in one table.

python -m benchmarks [--images FOLDER] [--only loading ...] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import Benchmark, Measurement, markdown
from pu_kd_pipeline.devices import cpu_name

MODULES = (
    "loading",
    "pu_stage",
    "distillation",
    "scaling",
    "start_up",
    "photos",
    "exported",
    "retrieval",
)


def machine(n_threads: int) -> str:
    """Return a description of the machine that the numbers were measured on."""
    gpu = "no GPU"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    hardware = f"{cpu_name()}, {os.cpu_count()} cores, {threads}, {gpu}"
    return f"{hardware}; torch {torch.__version__}, Python {platform.python_version()}"


def measure_all(modules: Sequence[str], images: Path | None, work: Path) -> list[Measurement]:
    """Measure the targets of these modules, and print each row as soon as it is there."""
    rows = []
    for name in modules:
        # Imported when needed: with `--only`, most modules are not.
        measure: Benchmark = importlib.import_module(f"benchmarks.{name}").measure
        for row in measure(images, work):
            rows.append(row)
            line = f"{row.verdict:7} {row.target} {row.what}: {row.value} {row.unit}"
            print(line, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure, print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--images", type=Path, default=os.environ.get("PU_KD_DATA"), help="default: $PU_KD_DATA"
    )
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, help="folder for generated stores; default: a temporary one"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    about = machine(options.threads)
    # The rows go to stderr as they come, so that stdout holds the table alone.
    print(about, file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = measure_all(options.only, options.images, work)

    table = f"{about}\n\n{markdown(rows)}"
    print(table)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    if options.json:
        content = {"machine": about, "rows": [row.as_json() for row in rows]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
