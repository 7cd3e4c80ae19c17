"""Ports in use, and by whom: read from the kernel's own tables, so that no tool has to be installed for it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

LISTEN = "0A"


def busy(wanted: Mapping[str, int], bind: str) -> dict[str, str]:
    """Which of the named ports cannot be bound on that address, and who listens there: {"AGENT_PORT": "pid 12, java …"}."""
    return {name: holder(port) for name, port in wanted.items() if not is_free(bind, port)}


def is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a port that only waits out old connections is free
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """The process that listens on a port, in words."""
    inodes = set(_listening(port))
    if not inodes:
        return "a process in another network namespace, or one that just ended"
    pids = sorted(_owners(inodes))
    if not pids:
        return "a process of another user (sudo ss -ltnp names it)"
    return "; ".join(f"pid {pid}, {command_line(pid)}" for pid in pids[:2])


def command_line(pid: int, limit: int = 60) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "which just ended"
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def _listening(port: int) -> Iterable[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _owners(inodes: set[str]) -> set[int]:
    owners = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it ended, or it is another user's
            if any(_socket(entry) in inodes for entry in folder.iterdir()):
                owners.add(int(folder.parent.name))
    return owners


def _socket(entry: Path) -> str | None:
    try:
        found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
    except OSError:  # closed since it was listed
        return None
    return found[1] if found else None
