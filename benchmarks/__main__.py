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
from pathlib import Path

import torch

from benchmarks.harness import Benchmark, Measurement, markdown

MODULES = ("loading", "pu_stage", "distillation", "scaling", "start_up")


def machine(n_threads: int) -> str:
    """Return what the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpu_info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{cpu}, {os.cpu_count()} cores, {n_threads} thread{'s' * (n_threads > 1)}, {gpu}; torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def main() -> None:
    """Measure, print, and keep."""
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
    print(about, file=sys.stderr)
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            measure: Benchmark = importlib.import_module(f"benchmarks.{name}").measure
            images = Path(options.images) if options.images else None
            for row in measure(images, work):
                rows.append(row)
                print(
                    f"{row.verdict:7} {row.target} {row.what}: {row.value} {row.unit}",
                    file=sys.stderr,
                    flush=True,
                )
    table = f"{about}\n\n{markdown(rows)}"
    print(table)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    if options.json:
        kept = {"machine": about, "rows": [row.as_json() for row in rows]}
        options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
