"""The command line: Kedro's commands with messages instead of tracebacks, and our own commands."""

from pu_kd_pipeline.cli.commands import cli, run

__all__ = ["cli", "run"]
