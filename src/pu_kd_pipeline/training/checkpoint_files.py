"""The files of checkpoints: whole or absent, and verified when they are read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pu_kd_pipeline.learning.loop import TrainingState


def is_disk_fault(error: Exception) -> OSError:
    """Return what writing raised, which torch wraps; raise what has nothing to do with the disk."""
    for each in (error, error.__context__):
        if isinstance(each, OSError):
            return each
    raise error


class DigestingFile:
    """A file that is written to, and the checksum of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write what torch makes of the content, which is a ZIP archive, and its SHA-256 behind it; flush both."""
    import torch

    with open(path, "wb") as file:
        digested = DigestingFile(file)
        torch.save(content, cast("IO[bytes]", digested))
        file.write(digested.digest.digest())
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any]:
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


def state_layout(state: TrainingState) -> str:
    """Return a hash of the names and shapes of all that the networks hold."""
    from torch import nn

    shapes = [
        f"{part} {name} {tuple(value.shape)} {value.dtype}"
        for part, network in state.parts.items()
        if isinstance(network, nn.Module)
        for name, value in network.state_dict().items()
    ]
    return hashlib.sha256("\n".join([*state.parts, *shapes]).encode()).hexdigest()[:12]
