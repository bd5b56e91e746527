"""Which process made a run, so that another one can know for certain that it has ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

STATES = Path("/proc")  # a folder for each process; only on Linux
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")
# Makes the digest one of this program alone.
MACHINE_ID_SALT = b"pu_kd_pipeline"
# The namespace of processes outside of containers has this number on every Linux.
OUTSIDE_OF_CONTAINERS = "pid:[4026531836]"
ENDED_STATES = ("Z", "X")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, distinct from every other one, also after its number is used again."""

    host: str
    machine: str
    boot: str
    """Changes with every start of the machine; "" where the system has no such thing."""
    namespace: str
    """In which `process_id` counts, as containers have their own; "" where there are none."""
    process_id: int
    started: str
    """When it started, in a unit of the system's."""

    def to_text(self) -> str:
        """Return the identity as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> ProcessIdentity | None:
        """Return the identity that `to_text` wrote; None for any other text."""
        try:
            fields = json.loads(text)
            return cls(**fields)
        except (TypeError, ValueError):
            return None


def identity_of(process_id: int) -> ProcessIdentity:
    """Return the identity of a living process of this machine."""
    return ProcessIdentity(
        host=socket.gethostname(),
        machine=_machine(),
        boot=_content(BOOT_ID),
        namespace=_namespace(),
        process_id=process_id,
        started=_start_of(process_id) or "",
    )


def is_known_dead(identity: ProcessIdentity) -> bool:
    """Return whether a process has ended for certain.

    False for a process that lives, and for one that cannot be judged from here: of another machine,
    or of another container.
    """
    boot = _content(BOOT_ID)
    namespace = _namespace()
    if boot and identity.boot == boot:
        # The same running system, so that numbers of processes can be compared.
        return identity.namespace == namespace and not _is_alive(identity)
    machine = _machine()
    # It ran before the machine was started again. Two containers may have the same names.
    is_comparable = not boot or (bool(machine) and namespace == OUTSIDE_OF_CONTAINERS)
    here = (socket.gethostname(), machine, namespace)
    is_same_machine = here == (identity.host, identity.machine, identity.namespace)
    return is_comparable and is_same_machine and not _is_alive(identity)


def _is_alive(identity: ProcessIdentity) -> bool:
    started = _start_of(identity.process_id)
    return (
        started is not None and started == identity.started and identity.boot == _content(BOOT_ID)
    )


def _content(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _machine() -> str:
    """Return a digest of the machine's identifier; "" where the system has none."""
    # The identifier itself must not leave the machine (see the manual page machine-id(5)).
    identifier = _content(MACHINE_ID)
    if not identifier:
        return ""
    digest = hashlib.blake2b(identifier.encode(), key=MACHINE_ID_SALT, digest_size=16)
    return digest.hexdigest()


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _start_of(process_id: int) -> str | None:
    """Return when a process started; None if there is none of this number, or it has ended."""
    if STATES.is_dir():
        text = _content(STATES / str(process_id) / "stat")
        # The name in parentheses may contain anything.
        fields = text.rpartition(")")[2].split()
        if not fields or fields[0] in ENDED_STATES:
            return None
        # Ticks since the machine was started: unlike a time, no clock changes them.
        return fields[19]
    import psutil

    try:
        return str(psutil.Process(process_id).create_time())
    except psutil.Error:
        return None
