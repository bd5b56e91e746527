"""The files of checkpoints, which are verified by a checksum when they are read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pu_kd_pipeline.learning.loop import TrainingState

_BLOCK_BYTES = 2**20


def disk_error(error: Exception) -> OSError:
    """Return the error of the disk behind an error of writing; raise any other error again."""
    # torch.save raises a RuntimeError of its own while it handles the one of the file
    for each in (error, error.__context__):
        if isinstance(each, OSError):
            return each
    raise error


class DigestingFile:
    """A file to write to that computes the SHA-256 of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write the content as torch does, followed by the SHA-256 of it, and flush it to the disk.

    torch writes a ZIP archive, whose readers ignore the 32 bytes behind its end.
    """
    import torch

    with open(path, "wb") as file:
        digested = DigestingFile(file)
        # torch.save needs only `write` and `flush`, and is typed to take a whole file
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
        while n_left > 0:
            block = file.read(min(n_left, _BLOCK_BYTES))
            if not block:  # cut short since its size was read
                break
            digest.update(block)
            n_left -= len(block)
        if file.read() != digest.digest():
            raise ValueError("its checksum is wrong")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def state_layout(state: TrainingState) -> str:
    """Return a hash of the names, shapes and types of all tensors of the networks."""
    from torch import nn

    lines = list(state.parts)
    for part, network in state.parts.items():
        if not isinstance(network, nn.Module):  # an optimizer follows from its network
            continue
        for name, value in network.state_dict().items():
            lines.append(f"{part} {name} {tuple(value.shape)} {value.dtype}")
    digest = hashlib.sha256("\n".join(lines).encode())
    return digest.hexdigest()[:12]
