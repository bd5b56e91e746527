"""One worker of a data-parallel training: which one it is, and the process that it is.

Torch is not imported here: the actors that start workers on other machines need none.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pu_kd_pipeline.errors import UnavailableError

# Kind and content; the last one of a worker is "ended", with how it did and what it wrote.
Message = tuple[str, tuple[Any, ...]]

START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from pu_kd_pipeline.training.worker_main import main
main(Path(sys.argv[2]), sys.argv[3])
"""
# Of a worker that has sent its result.
SECONDS_TO_END = 10.0
_N_LINES_SHOWN = 5  # of what a worker wrote to stderr before it ended
_LINUX_SIOCGIFADDR = 0x8915  # asks for the address of a network interface


class EndedWorkerError(UnavailableError):
    """A worker of a training has ended, or could not be started.

    Args:
        what: which one, and how.
        lines: what it wrote to stderr before.
    """

    def __init__(self, what: str, lines: Sequence[str] = ()) -> None:
        message = (
            f"{what}. The same command resumes from the last checkpoint, also with another "
            "training_workers.n."
        )
        if lines:
            message += " It wrote: " + " / ".join(lines)
        super().__init__(message)
        self.what = what


@dataclass(frozen=True)
class Place:
    """Which worker of a training a process is, and where it meets the others.

    Attributes:
        rank: in 0..n-1.
        n: number of workers.
        local_rank: among those that see the same GPUs.
        n_local: number of these.
        rendezvous: where the workers find each other, as for `worker_group`.
        n_threads: CPU threads, unless the environment sets them; None: as torch chooses.
        interface: of the network between the workers; None: that of the machine's own name.
        is_without_gpus: whether those of the machine are hidden.
    """

    rank: int
    n: int
    local_rank: int
    n_local: int
    rendezvous: str
    n_threads: int | None = None
    interface: str | None = None
    is_without_gpus: bool = False

    def environment(self) -> Mapping[str, str]:
        """Return the variables that a worker is started with, in addition to the inherited ones."""
        added = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.n),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.n_local),
        }
        if self.n_threads is not None and "OMP_NUM_THREADS" not in os.environ:
            added["OMP_NUM_THREADS"] = str(self.n_threads)
        if self.interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
            added["GLOO_SOCKET_IFNAME"] = self.interface
        if self.is_without_gpus:
            added["CUDA_VISIBLE_DEVICES"] = ""
        return added


class Member(Protocol):
    """A worker, seen from the process that started it."""

    def messages(self) -> Iterator[Message]:
        """Yield what the worker sends, and then how it ended; called by a thread of its own."""

    def end(self) -> None:
        """End the worker, whatever it is doing."""


class ProcessMember:
    """A worker that is a process of this machine.

    Args:
        place: which worker it is.
        folder: with the task; its stderr is written there.
        search_path: where it imports from.
        working_folder: that its relative paths start from; None: that of this process.
    """

    def __init__(
        self,
        place: Place,
        folder: Path,
        search_path: Sequence[str],
        working_folder: str | None = None,
    ) -> None:
        self._log_file = folder / f"worker-{place.rank}.log"
        arguments = [json.dumps(list(search_path)), str(folder), place.rendezvous]
        with open(self._log_file, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, *arguments],
                cwd=working_folder,
                env={**os.environ, **place.environment()},
                # Held open while this process lives: a worker ends when it is closed.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # The terminal's Ctrl-C is for this process, which ends the workers.
                start_new_session=True,
            )

    def messages(self) -> Iterator[Message]:
        """Yield what the worker sends, and then how it ended."""
        pipe = self._process.stdout
        assert pipe is not None
        try:
            # A worker that is killed may leave half a message.
            with suppress(EOFError, OSError, pickle.UnpicklingError):
                while True:
                    yield pickle.load(pipe)
        except Exception:
            # Such as an object of a class that cannot be imported here.
            yield "failed", (traceback.format_exc(),)
        yield "ended", (self._how_it_ended(), self._last_lines())

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        # A process that waits for a lost disk cannot be killed, and is not waited for.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(OSError):
            pipe.close()

    def _how_it_ended(self) -> str:
        # Its pipe is closed, so that it has ended or is about to.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        code = self._process.returncode
        reason = f"ended with exit code {code}"
        if code is not None and code < 0:
            reason = f"was ended by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGKILL", 0):
            reason += ", as where memory runs out"
        return reason

    def _last_lines(self) -> list[str]:
        with suppress(OSError):
            lines = self._log_file.read_text("utf-8", "replace").splitlines()
            return lines[-_N_LINES_SHOWN:]
        return []


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has an IPv4 address, if that can be found.

    Gloo would use the address that belongs to the machine's name, which may be none that other
    machines can reach.
    """
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            # An interface may have no address.
            with suppress(OSError):
                answer = fcntl.ioctl(any_socket.fileno(), _LINUX_SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
