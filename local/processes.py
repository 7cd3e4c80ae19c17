"""Processes by identity: a pid alone may be somebody else's by the time it is used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> Callable[[], None]:
    """For Popen's preexec_fn: the child gets SIGTERM when this process ends, however it ends, SIGKILL included."""
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    return prepare


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def marked(mark: str) -> list[int]:
    """Every living process, but this one, whose environment holds `NAME=value`: descendants, whoever their parent is now."""
    wanted = mark.encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (folder / "environ").read_bytes()
            if wanted in environ.split(b"\0") and int(folder.name) != os.getpid() and not _is_zombie(folder):
                found.append(int(folder.name))
    return found


def end(pids: Callable[[], Iterable[int]], grace: float) -> int:
    """SIGTERM to what `pids()` lists, SIGKILL to what is still listed after `grace` seconds; how many there were."""
    first = list(pids())
    _signal(first, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while left := list(pids()):
        if time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
        time.sleep(0.05)
    return len(first)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
