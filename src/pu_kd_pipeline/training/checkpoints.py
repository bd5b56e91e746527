"""Checkpoints: a training that was stopped, at whatever moment, goes on from the last one and ends in the same weights.

Whether and where they are kept is told from outside, by `keep_in`, as it is for every node of a Kedro run; where nobody
told, none are written or read. A checkpoint is a file that `torch.load(weights_only=True)` reads, with a checksum. The
last two are kept, and the very last state of a training too: what was trained is not lost before it is saved.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.atomic import flush_folder, remove_leftovers, replacing_file
from pu_kd_pipeline.training.checkpoint_files import (
    is_disk_fault,
    read_checkpoint,
    state_layout,
    write_checkpoint,
)

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import Tensor

    from pu_kd_pipeline.learning.loop import TrainingState

logger = logging.getLogger(__name__)
FORMAT = 1  # a higher one has every training start anew
MOST_OF_THE_TIME = (
    0.05  # that writing may take, however large the networks: the interval grows with it
)
# Keys of `compute` that do not decide a result, so that they can be lowered where memory ran out.
_UNDECISIVE = {"device", "n_threads", "resident_limit_gb", "inference_batch_size"}
_SUFFIX = ".ckpt"
_TOLD_CHANGES, _TOLD_CHARACTERS = 3, 24  # of what another configuration is told by


@dataclass(frozen=True)
class _Place:
    folder: Path
    every_s: float


_place: ContextVar[_Place | None] = ContextVar("checkpoints", default=None)


def keep_in(folder: Path, every_s: float) -> None:
    """Keep the checkpoints of the trainings that follow in a folder, one about every so many seconds."""
    _place.set(_Place(folder, every_s))


def keep_nowhere() -> None:
    """Keep no checkpoints from now on."""
    _place.set(None)


@contextmanager
def unkept() -> Iterator[None]:
    """Neither write nor read checkpoints inside: of what is short, or is one of many and done again as a whole."""
    token = _place.set(None)
    try:
        yield
    finally:
        _place.reset(token)


def decided_by(params: BaseModel, device: torch.device, **facts: Any) -> dict[str, Any]:
    """Return what a training's result depends on, flat and readable: its parameters, and facts such as fingerprints."""
    block = params.model_dump(mode="json")
    block["compute"] = {
        key: value for key, value in block["compute"].items() if key not in _UNDECISIVE
    }
    return {"device": device.type, **dict(flatten(block)), **dict(flatten(facts))}


@contextmanager
def keeping(
    name: str, about: Callable[[], Mapping[str, Any]]
) -> Iterator[Checkpoints | NoCheckpoints]:
    """Yield what keeps the state of a training.

    What ends the training is told to the user, with the checkpoint that is left.

    Args:
        name: of the training, one of its kind in the node.
        about: returns what the result depends on, see `decided_by`; not called where nothing is kept.

    Raises:
        InputError: the loss was not finite, or memory ran out (`MemoryShortage`).
    """
    place = _place.get()
    checkpoints = (
        Checkpoints(place.folder, place.every_s, name, about) if place else NoCheckpoints()
    )
    with told(name, checkpoints.left):
        yield checkpoints


@contextmanager
def told(name: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Tell the user what ends a training that nobody could foresee; see `keeping`, which does, and `memory_told`."""
    from pu_kd_pipeline.devices import memory_told

    try:
        with memory_told(name, more):
            yield
    except FloatingPointError as exc:
        raise InputError(f"{name}: {exc}.{more()}") from exc


class NoCheckpoints:
    """What stands for `Checkpoints` where no place was told."""

    def restore(self, state: TrainingState) -> None:
        """Start from the beginning."""

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Do nothing."""

    def remembered(self, what: str, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what is made."""
        return make()

    def left(self) -> str:
        """Return nothing."""
        return ""


class Checkpoints:
    """The `learning.training.Keeper` of one training.

    Args:
        folder: where its files are; made when the first is written.
        every_s: seconds between two, or more where writing takes long; 0: one after every update.
        name: of the files.
        about: see `keeping`.
    """

    def __init__(
        self, folder: Path, every_s: float, name: str, about: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._name, self._every_s, self._about = name, every_s, about
        self._path, self._previous = (
            folder / f"{name}{suffix}" for suffix in (_SUFFIX, f".previous{_SUFFIX}")
        )
        self._layout = ""
        self._due = time.monotonic() + every_s
        self._good: tuple[int, Path] | None = (
            None  # the newest that is known to be whole, and its update
        )
        self._is_given_up = False
        self._refused: list[str] = []
        remove_leftovers(folder)

    def restore(self, state: TrainingState) -> None:
        """Go on from the newest checkpoint that is whole and of this configuration, or from the beginning."""
        self._layout = state_layout(state)
        for path in (self._path, self._previous):
            if (content := self._found(path, self._layout)) is not None:
                state.load_state_dict(content)
                self._good = (state.update, path)
                break
        refused = "; ".join(dict.fromkeys(self._refused))  # of two checkpoints often for one reason
        if self._good is not None:
            but = f"{refused}; " if refused else ""
            logger.info("%s: %strains on after update %d, from %s", self._name, but, *self._good)
        elif refused:
            logger.warning("%s: %s: training starts anew", self._name, refused)
        else:
            logger.debug("%s: no checkpoint, so training starts from the beginning", self._name)

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Write a checkpoint when it is due, and after the last update; never one that is not finite."""
        if self._is_given_up or (time.monotonic() < self._due and not is_last):
            return
        started = time.monotonic()
        if state.is_finite():
            self._keep(state)
        now = time.monotonic()
        self._due = now + (
            max(self._every_s, (now - started) / MOST_OF_THE_TIME) if self._every_s else 0.0
        )

    def remembered(self, what: str, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what is made before the training; where that took longer than `every_s`, it is not made again."""
        path = self._path.with_name(f"{self._name}.{what}{_SUFFIX}")
        if (content := self._found(path, what)) is not None:
            value: Tensor = content["value"]
            return value
        started = time.monotonic()
        made = make()
        if made is not None and time.monotonic() - started > self._every_s:
            try:
                with replacing_file(path) as temporary:
                    write_checkpoint(
                        {"identity": self._identity(what), "content": {"value": made}}, temporary
                    )
            except (OSError, RuntimeError) as exc:
                logger.warning("%s: %s cannot be kept (%s)", self._name, path, is_disk_fault(exc))
        return made

    def left(self) -> str:
        """Return the sentence that says which checkpoint there is; empty if there is none."""
        if self._good is None:
            return ""
        update, path = self._good
        return (
            f" The last good checkpoint, of update {update}, is kept in {path}: the same command goes on from there, "
            "and one with other parameters starts anew."
        )

    @cached_property
    def _decided(self) -> dict[str, Any]:
        import torch

        return {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "name": self._name,
            **self._about(),
        }

    def _identity(self, of: str) -> dict[str, Any]:
        return {**self._decided, "networks": of}

    def _found(self, path: Path, of: str) -> dict[str, Any] | None:
        """Return the content of a file that is there, whole, and of this configuration; note why one is not used."""
        if not path.exists():
            return None
        try:
            file = read_checkpoint(path)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
            self._refused.append(f"the checkpoint {path} is damaged ({_first_line(exc)})")
            return None
        theirs, ours = file["identity"], self._identity(of)
        changes = [
            f"{key} {_short(theirs.get(key))} → {_short(ours.get(key))}"
            for key in {**theirs, **ours}
            if theirs.get(key) != ours.get(key)
        ]
        if changes:
            more = (
                f" and {len(changes) - _TOLD_CHANGES} more" if len(changes) > _TOLD_CHANGES else ""
            )
            self._refused.append(
                f"checkpoint of another configuration ({', '.join(changes[:_TOLD_CHANGES])}{more})"
            )
            return None
        content: dict[str, Any] = file["content"]
        return content

    def _keep(self, state: TrainingState) -> None:
        """Write a checkpoint beside the last one, which becomes the one before; on a full disk that stays the last."""
        try:
            with replacing_file(self._path) as temporary:
                write_checkpoint(
                    {"identity": self._identity(self._layout), "content": state.state_dict()},
                    temporary,
                )
                if (
                    self._good is not None and self._good[1] == self._path
                ):  # no other takes the place of a good one
                    os.replace(self._path, self._previous)
            flush_folder(self._path.parent)
            self._good = (state.update, self._path)
        except (OSError, RuntimeError) as exc:
            fault = is_disk_fault(exc)
            self._is_given_up = True
            logger.warning(
                "%s: the checkpoint of update %d cannot be written (%s): training goes on without checkpoints.%s",
                self._name,
                state.update,
                fault,
                self.left(),
            )


def _short(value: Any) -> str:
    """Return a value as text, of a fingerprint the beginning."""
    return (
        text if len(text := str(value)) <= _TOLD_CHARACTERS else f"{text[: _TOLD_CHARACTERS // 2]}…"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def remove(folder: Path) -> None:
    """Remove the checkpoints of a node, and the folder of all where it was the last."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other nodes have some, or there never were any
        folder.parent.rmdir()
