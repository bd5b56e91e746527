"""Checkpoints: a training that was stopped resumes from the last one and ends in the same weights.

Whether and where they are written is set from outside, by `set_checkpoint_folder`, as it is for
every node of a Kedro run; without a call none are written or read. A checkpoint is a file that
`torch.load(weights_only=True)` reads, with a checksum. The last two are kept. The last state of a
training is written, too: what was trained is not lost before it is saved.
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

from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.atomic import flush_folder, remove_leftovers, replacing_file
from pu_kd_pipeline.training.checkpoint_files import (
    disk_error,
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
FORMAT = 1  # with a higher one every training starts over
# Share of the time that writing may take: with large networks the interval grows.
MAX_WRITING_SHARE = 0.05
# Keys of `compute` that do not change a result, so that they can be lowered when memory runs out.
_KEYS_WITHOUT_EFFECT = {"device", "n_threads", "resident_limit_gb", "inference_batch_size"}
_SUFFIX = ".ckpt"
_MAX_LISTED_CHANGES = 3  # of another configuration, in the log
_MAX_VALUE_CHARACTERS = 24  # of a changed value in the log, such as a fingerprint


@dataclass(frozen=True)
class _Settings:
    folder: Path
    every_s: float


# A context variable, so that `checkpoints_disabled` can restore what was set before it.
_settings: ContextVar[_Settings | None] = ContextVar("checkpoints", default=None)


def set_checkpoint_folder(folder: Path, every_s: float) -> None:
    """Write checkpoints of the trainings that follow.

    Args:
        folder: where they are written.
        every_s: seconds between two; 0: one after every update.
    """
    _settings.set(_Settings(folder, every_s))


def disable_checkpoints() -> None:
    """Write and read no checkpoints any more."""
    _settings.set(None)


def checkpoint_settings() -> tuple[Path, float] | None:
    """Return the arguments that `set_checkpoint_folder` was called with; None: there are none."""
    settings = _settings.get()
    if settings is None:
        return None
    return settings.folder, settings.every_s


@contextmanager
def checkpoints_disabled() -> Iterator[None]:
    """Disable checkpoints inside: for short trainings, and for many that are redone as a whole."""
    token = _settings.set(None)
    try:
        yield
    finally:
        _settings.reset(token)


def training_identity(params: BaseModel, device: torch.device, **facts: Any) -> dict[str, Any]:
    """Return what the result of a training depends on, as dotted key -> value.

    Args:
        params: the block of the training, which has a block `compute`.
        device: of the training; only its type counts.
        facts: such as fingerprints of images, networks, and the code and libraries of the training.
    """
    block = params.model_dump(mode="json")
    for key in _KEYS_WITHOUT_EFFECT:
        block["compute"].pop(key, None)
    # How many workers share a batch changes a result only by rounding (docs/data_parallel.md).
    block.pop("training_workers", None)
    return {"device": device.type, **dict(flatten(block)), **dict(flatten(facts))}


@contextmanager
def checkpointing(
    name: str, about: Callable[[], Mapping[str, Any]]
) -> Iterator[Checkpoints | DisabledCheckpoints]:
    """Yield the checkpoints of a training, and explain errors that end it.

    The messages name the checkpoint that is left.

    Args:
        name: of the training, unique in the node.
        about: returns what the result depends on, see `training_identity`; not called without
            checkpoints.

    Raises:
        InputError: the loss was not finite, or memory ran out (`MemoryShortage`).
    """
    settings = _settings.get()
    checkpoints: Checkpoints | DisabledCheckpoints = DisabledCheckpoints()
    if settings is not None:
        from pu_kd_pipeline.training.worker_group import current_workers

        is_writer = current_workers().is_first
        checkpoints = Checkpoints(
            settings.folder, settings.every_s, name, about, is_writer=is_writer
        )
    with explain_training_errors(name, checkpoints.last_checkpoint_sentence):
        yield checkpoints


@contextmanager
def explain_training_errors(name: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors that end a training, and that nobody could foresee, into an InputError.

    `checkpointing` does this, too.

    Args:
        name: of the training.
        more: returns a sentence to add to the message.

    Raises:
        InputError: the loss was not finite, or memory ran out (`MemoryShortage`).
    """
    from pu_kd_pipeline.devices import explain_memory_shortage
    from pu_kd_pipeline.learning.workers import WorkersDifferError

    try:
        with explain_memory_shortage(name, more):
            yield
    except FloatingPointError as exc:
        raise InputError(f"{name}: {exc}.{more()}") from exc
    except WorkersDifferError as exc:
        raise UnavailableError(f"{name}: {exc}.{more()}") from exc


class DisabledCheckpoints:
    """Replaces `Checkpoints` where they are disabled."""

    def restore(self, state: TrainingState) -> None:
        """Start from the beginning."""

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Do nothing."""

    def cached(self, what: str, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what `make` returns."""
        return make()

    def last_checkpoint_sentence(self) -> str:
        """Return an empty sentence."""
        return ""


class Checkpoints:
    """Writes and restores the state of one training, see `learning.loop.Checkpointer`.

    Args:
        folder: where its files are; created when the first is written.
        every_s: seconds between two, or more if writing takes long; 0: one after every update.
        name: of the files.
        about: see `checkpointing`.
        is_writer: false: the files are read alone, because another worker writes them.
    """

    def __init__(
        self,
        folder: Path,
        every_s: float,
        name: str,
        about: Callable[[], Mapping[str, Any]],
        *,
        is_writer: bool = True,
    ) -> None:
        self._name = name
        self._every_s = every_s
        self._about = about
        self._path = folder / f"{name}{_SUFFIX}"
        self._previous = folder / f"{name}.previous{_SUFFIX}"
        self._layout = ""
        self._due = time.monotonic() + every_s
        # (update, file) of the newest checkpoint that is known to be intact
        self._good: tuple[int, Path] | None = None
        self._is_given_up = not is_writer
        self._is_writer = is_writer
        self._refused: list[str] = []  # why files were not used
        if is_writer:
            remove_leftovers(folder)

    def restore(self, state: TrainingState) -> None:
        """Resume from the newest intact checkpoint of this configuration, if one exists."""
        self._layout = state_layout(state)
        for path in (self._path, self._previous):
            content = self._read(path, self._layout)
            if content is not None:
                state.load_state_dict(content)
                self._good = (state.update, path)
                break
        self._log_start()

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Write a checkpoint when it is due, and after the last update, if the state is finite."""
        if self._is_given_up:
            return
        started = time.monotonic()
        if started < self._due and not is_last:
            return
        # The state of a training that diverges would end every resumed one, too.
        if state.is_finite():
            self._write(state)
        now = time.monotonic()
        interval_s = self._every_s
        if interval_s > 0:  # tests set 0 to have a checkpoint after every update
            interval_s = max(interval_s, (now - started) / MAX_WRITING_SHARE)
        self._due = now + interval_s

    def cached(self, what: str, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Return a tensor that is made before the training.

        It is kept if making it took longer than `every_s`, and then not made again.

        Args:
            what: names its file.
            make: returns it; None is not kept.
        """
        path = self._path.with_name(f"{self._name}.{what}{_SUFFIX}")
        content = self._read(path, what)
        if content is not None:
            value: Tensor = content["value"]
            return value
        started = time.monotonic()
        made = make()
        took_s = time.monotonic() - started
        if made is not None and took_s > self._every_s and self._is_writer:
            file = {"identity": self._identity(what), "content": {"value": made}}
            try:
                with replacing_file(path) as temporary:
                    write_checkpoint(file, temporary)
            except (OSError, RuntimeError) as exc:
                logger.warning("%s: %s cannot be kept (%s)", self._name, path, disk_error(exc))
        return made

    def last_checkpoint_sentence(self) -> str:
        """Return a sentence on the checkpoint that can be resumed from; empty if there is none."""
        if self._good is None:
            return ""
        update, path = self._good
        return (
            f" The last good checkpoint, of update {update}, is kept in {path}: the same command "
            "resumes from there, and one with other parameters starts over."
        )

    def _log_start(self) -> None:
        # two checkpoints are often refused for the same reason
        refused = "; ".join(dict.fromkeys(self._refused))
        if self._good is not None:
            update, path = self._good
            prefix = f"{refused}; " if refused else ""
            logger.info("%s: %sresumes after update %d, from %s", self._name, prefix, update, path)
        elif refused:
            logger.warning("%s: %s: training starts over", self._name, refused)
        else:
            logger.debug("%s: no checkpoint, so training starts from the beginning", self._name)

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        import torch

        return {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "name": self._name,
            **self._about(),
        }

    def _identity(self, content: str) -> dict[str, Any]:
        """Return what must be equal for a file to be used; `content` tells kinds of files apart."""
        return {**self._configuration, "networks": content}

    def _read(self, path: Path, content: str) -> dict[str, Any] | None:
        """Return the content of a file if it is there, intact, and of this configuration.

        If it is not used, the reason is noted.
        """
        if not path.exists():
            return None
        try:
            file = read_checkpoint(path)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
            self._refused.append(f"the checkpoint {path} is damaged ({first_line(exc)})")
            return None
        changes = _changes(file["identity"], self._identity(content))
        if changes:
            self._refused.append(f"checkpoint of another configuration ({_listed(changes)})")
            return None
        found: dict[str, Any] = file["content"]
        return found

    def _write(self, state: TrainingState) -> None:
        """Write a checkpoint, and keep the last one as the previous one.

        If the disk is full, the last one stays, and no more are written.
        """
        file = {"identity": self._identity(self._layout), "content": state.state_dict()}
        try:
            with replacing_file(self._path) as temporary:
                write_checkpoint(file, temporary)
                # A damaged checkpoint must not replace the previous one, which may be intact.
                if self._good is not None and self._good[1] == self._path:
                    os.replace(self._path, self._previous)
            flush_folder(self._path.parent)
            self._good = (state.update, self._path)
        except (OSError, RuntimeError) as exc:
            fault = disk_error(exc)
            self._is_given_up = True
            logger.warning(
                "%s: the checkpoint of update %d cannot be written (%s): training continues "
                "without checkpoints.%s",
                self._name,
                state.update,
                fault,
                self.last_checkpoint_sentence(),
            )


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return "key old → new" of what differs between a checkpoint's configuration and ours."""
    changes = []
    for key in {**theirs, **ours}:
        old = theirs.get(key)
        new = ours.get(key)
        if old != new:
            changes.append(f"{key} {_shortened(old)} → {_shortened(new)}")
    return changes


def _listed(changes: list[str]) -> str:
    text = ", ".join(changes[:_MAX_LISTED_CHANGES])
    n_more = len(changes) - _MAX_LISTED_CHANGES
    if n_more > 0:
        text += f" and {n_more} more"
    return text


def _shortened(value: Any) -> str:
    text = str(value)
    if len(text) <= _MAX_VALUE_CHARACTERS:
        return text
    return f"{text[: _MAX_VALUE_CHARACTERS // 2]}…"


def remove(folder: Path) -> None:
    """Remove the checkpoints of a node, and the folder of all nodes if it is empty then."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other nodes have checkpoints, or the folder never existed
        folder.parent.rmdir()
