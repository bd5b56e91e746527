"""`pu-kd-pipeline` and `python -m pu_kd_pipeline`: `kedro run` for an installed package."""

from __future__ import annotations

from typing import Any

from kedro.framework.project import configure_project


def main(*args: Any, **kwargs: Any) -> Any:
    """Run with the options of `kedro run`, in a folder that holds `conf/`."""
    configure_project("pu_kd_pipeline")
    # Kedro's commands can be imported only after the project is configured.
    from pu_kd_pipeline.cli.commands import run

    return run(*args, **kwargs)


if __name__ == "__main__":
    main()
