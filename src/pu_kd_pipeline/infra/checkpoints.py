"""Checkpoints: a training that was stopped, at whatever moment, goes on from the last one and ends in the same weights.

Whether and where they are kept is told from outside, by `keep_in`, as it is for every node of a Kedro run; where nobody
told, none are written or read. A checkpoint is a file that `torch.load(weights_only=True)` reads, with a checksum. The
last two are kept, and the very last state of a training too: what was trained is not lost before it is saved.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.atomic_files import flush_folder, replacing_file
from pu_kd_pipeline.infra.run_facts import flatten

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from pu_kd_pipeline.learning.training import TrainingState

logger = logging.getLogger(__name__)

FORMAT = 1  # a higher one has every training start anew
MOST_OF_THE_TIME = 0.05  # may be spent on writing, however large the networks and however short the interval
# Keys of `compute` that do not decide a result, so that they can be lowered where memory ran out.
_UNDECISIVE = {"device", "n_threads", "resident_limit_gb", "inference_batch_size"}
_SUFFIX, _PREVIOUS = ".ckpt", ".previous.ckpt"
_TOLD_CHANGES = 3


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
    block["compute"] = {key: value for key, value in block["compute"].items() if key not in _UNDECISIVE}
    return {"device": device.type, **dict(flatten(block)), **dict(flatten(facts))}


@contextmanager
def keeping(name: str, about: Callable[[], Mapping[str, Any]]) -> Iterator[Checkpoints | None]:
    """Yield what keeps the state of a training; None where no place was told.

    What ends the training is told to the user, with the checkpoint that is left.

    Args:
        name: of the training, one of its kind in the node.
        about: returns what the result depends on, see `decided_by`; not called where nothing is kept.

    Raises:
        InputError: the loss was not finite, or memory ran out.
    """
    from pu_kd_pipeline.infra.devices import memory_told

    place = _place.get()
    checkpoints = Checkpoints(place.folder, place.every_s, name, about) if place else None
    left = checkpoints.left if checkpoints else lambda: ""
    try:
        with memory_told(name, left):
            yield checkpoints
    except FloatingPointError as exc:
        raise InputError(f"{name}: {exc}.{left()}") from exc


class Checkpoints:
    """The `learning.training.Keeper` of one training.

    Args:
        folder: where its files are; made when the first is written.
        every_s: seconds between two, or more where writing takes long.
        name: of the files.
        about: see `keeping`.
    """

    def __init__(self, folder: Path, every_s: float, name: str, about: Callable[[], Mapping[str, Any]]) -> None:
        self._name, self._every_s, self._about = name, every_s, about
        self._path, self._previous = folder / f"{name}{_SUFFIX}", folder / f"{name}{_PREVIOUS}"
        self._identity: dict[str, Any] = {}
        self._due = time.monotonic() + every_s
        self._good: tuple[int, Path] | None = None  # the newest that is known to be whole, by its update
        self._is_given_up = False

    def restore(self, state: TrainingState) -> None:
        """Go on from the newest checkpoint that is whole and of this configuration, or from the beginning."""
        import torch

        software = {"format": FORMAT, "torch": str(torch.__version__)}
        self._identity = {**software, "name": self._name, "networks": _layout(state), **self._about()}
        for leftover in self._path.parent.glob(f".{self._path.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        for path in (self._path, self._previous):
            if path.exists() and (content := self._readable(path)) and self._is_ours(content["identity"]):
                state.load_state_dict(content["state"])
                self._good = (state.update, path)
                logger.info("%s: goes on after update %d, from %s", self._name, state.update, path)
                return
        logger.debug("%s: starts from the beginning", self._name)

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Write a checkpoint when it is due, and after the last update; never one that is not finite."""
        if self._is_given_up or (time.monotonic() < self._due and not is_last):
            return
        started = time.monotonic()
        if state.is_finite():
            self._write(state)
        now = time.monotonic()
        self._due = now + max(self._every_s, (now - started) / MOST_OF_THE_TIME)

    def left(self) -> str:
        """Return the sentence that says which checkpoint there is; empty if there is none."""
        if self._good is None:
            return ""
        update, path = self._good
        return (
            f" The last good checkpoint, of update {update}, is kept in {path}: the same command goes on from there, "
            "and one with other parameters starts anew."
        )

    def _readable(self, path: Path) -> dict[str, Any] | None:
        try:
            return _read(path)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
            logger.warning("%s: the checkpoint %s is damaged (%s) and is not used", self._name, path, exc)
            return None

    def _is_ours(self, identity: Mapping[str, Any]) -> bool:
        keys = [key for key in {**identity, **self._identity} if identity.get(key) != self._identity.get(key)]
        told = ", ".join(f"{key} {identity.get(key)} → {self._identity.get(key)}" for key in keys[:_TOLD_CHANGES])
        if keys:
            more = f" and {len(keys) - _TOLD_CHANGES} more" if len(keys) > _TOLD_CHANGES else ""
            logger.info("%s: checkpoint of another configuration (%s%s): it is not used", self._name, told, more)
        return not keys

    def _write(self, state: TrainingState) -> None:
        """Write a checkpoint beside the last one, which becomes the one before; on a full disk that stays the last."""
        try:
            with replacing_file(self._path) as temporary:
                with open(temporary, "wb") as file:
                    _write({"identity": self._identity, "state": state.state_dict()}, file)
                if self._path.exists():
                    os.replace(self._path, self._previous)
            flush_folder(self._path.parent)
            self._good = (state.update, self._path)
        except (OSError, RuntimeError) as exc:  # torch wraps what the file raises
            self._is_given_up = True
            reason = exc.__context__ if isinstance(exc.__context__, OSError) else exc
            logger.warning(
                "%s: the checkpoint of update %d cannot be written (%s): training goes on without checkpoints.%s",
                self._name,
                state.update,
                reason,
                self.left(),
            )


class _Digested:
    """A file that is written to, and the checksum of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write what torch makes of the content, which is a ZIP archive, and its SHA-256 behind it; flush both."""
    import torch

    digested = _Digested(file)
    torch.save(content, cast("IO[bytes]", digested))
    file.write(digested.digest.digest())
    file.flush()
    os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises:
        ValueError: the checksum is wrong.
    """
    import torch

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        n_left = max(path.stat().st_size - digest.digest_size, 0)
        while block := file.read(min(n_left, 2**20)):
            digest.update(block)
            n_left -= len(block)
        if file.read() != digest.digest():
            raise ValueError("its checksum is wrong")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _layout(state: TrainingState) -> str:
    """Return a hash of the names and shapes of all that the networks hold."""
    from torch import nn

    shapes = [
        f"{part} {name} {tuple(value.shape)} {value.dtype}"
        for part, network in state.parts.items()
        if isinstance(network, nn.Module)
        for name, value in network.state_dict().items()
    ]
    return hashlib.sha256("\n".join([*state.parts, *shapes]).encode()).hexdigest()[:12]


def remove(folder: Path) -> None:
    """Remove the checkpoints of a node, and the folder of all where it was the last."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other nodes have some, or there never were any
        folder.parent.rmdir()
