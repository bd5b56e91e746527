"""`kedro new-env`: an environment in conf/ from the files that a user has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pu_kd_pipeline.cli.errors import errors_as_exit_codes


def _sources_option(name: str, help_text: str) -> Any:
    return click.option(
        f"--{name}", multiple=True, required=True, metavar="PATH", help=f"{help_text} Repeatable."
    )


def _pairs_option(name: str, help_text: str) -> Any:
    return click.option(f"--{name}", multiple=True, metavar="KEY=VALUE", help=help_text)


@click.command(name="new-env")
@click.argument("name")
@click.option(
    "--teacher",
    required=True,
    metavar="PATH|MODULE:FUNCTION",
    help="Weights file, model folder, or factory of a network with its weights.",
)
@_sources_option(
    "labeled", "Labeled images: folder, Parquet file, tar archive, CSV or TSV list, or pattern."
)
@_sources_option("pool", "Unlabeled images.")
@_sources_option("test", "Labeled images for the final evaluation.")
@click.option("--architecture", help="Network of the weights: a name, or package.module:function.")
@_pairs_option("architecture-option", "Argument of the architecture, such as width=32. Repeatable.")
@click.option("--classes", help="Names in the order of the outputs: a,b,c, or a file of lines.")
@click.option("--size", "size_px", type=click.IntRange(min=1), help="Width and height in pixels.")
@click.option("--mean", help="Of pixels in [0, 1]: one number, or one per color: 0.5,0.4,0.4")
@click.option("--std", help="Like --mean.")
@_pairs_option("input", "Another key of teacher.input. Repeatable.")
@_pairs_option("output", "Key of teacher.output, such as key=logits. Repeatable.")
@click.option("--student", help="Architecture of the student; without it, one is chosen.")
@_pairs_option("student-option", "Argument of the student's architecture. Repeatable.")
@click.option(
    "--labeled-per-class",
    type=click.IntRange(min=1),
    help="Where one source is labeled images and pool: labeled images of each label.",
)
@click.option("--test-per-class", type=click.IntRange(min=1), help="The same for test images.")
@click.option(
    "--leave-out-other-labels",
    is_flag=True,
    help="Leave out labeled and test images whose label is no class of the teacher.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an existing environment.")
def new_env(name: str, overwrite: bool, **options: Any) -> None:
    """Write conf/NAME for your teacher and images, check it, and print what was found.

    Nothing is written if something cannot be used.
    """
    from pu_kd_pipeline.cli.new_environment import Request, make_environment

    # The tables show what is in the log lines of these modules.
    with (
        errors_as_exit_codes(),
        _only_warnings("pu_kd_pipeline.images", "pu_kd_pipeline.models"),
    ):
        request = Request(**options)
        is_ready = make_environment(name, request, _project(), Path.cwd(), overwrite=overwrite)
    command = f"kedro run --pipeline=full --env={name}"
    if is_ready:
        click.echo(f"\nNext: {command}")
    else:
        click.echo(f"\nNext: correct the teacher in conf/{name} (see WARNING), then {command}")


def _project() -> Path:
    from kedro.utils import find_kedro_project

    folder = find_kedro_project(Path.cwd())
    # Kedro offers the commands of a project only inside of it.
    assert folder is not None
    return Path(folder)


@contextmanager
def _only_warnings(*names: str) -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
