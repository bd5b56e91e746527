"""The command line: Kedro's commands with messages instead of tracebacks, and commands of this project."""

from pu_kd_pipeline.cli.commands import cli, run

__all__ = ["cli", "run"]
