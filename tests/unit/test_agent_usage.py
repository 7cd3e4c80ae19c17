"""What a start takes of memory and disk, against processes and files whose size is known: a peak that counts a shared page twice,
or a folder's links as files, would be a wrong figure beside every cold start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.agent.usage import Usage, descendants, on_disk, pss, usage

MIB = 1 << 20
HOLDER = """
import os, sys
held = bytearray(os.urandom(1 << 20) * 64)
child = os.fork() if sys.argv[1] == "fork" else 0
if child or sys.argv[1] != "fork":
    print(child or os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, how: str) -> Iterator[tuple[int, int]]:
    """A process in `folder` that holds 64 MiB, alone or with a fork of it that shares them; both process ids."""
    command = [sys.executable, "-c", HOLDER, how]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def test_a_worker_takes_what_it_holds_and_what_lies_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(3 * MIB))
    with holder(tmp_path, "alone") as (pid, _):
        found = usage(pid, [pid, 2**22 + 1], disk=True)
        assert list(found.workers) == [pid], "one that is gone is left out"
        worker = found.workers[pid]
        assert 64 * MIB <= worker.memory < 100 * MIB
        assert (worker.folder, worker.disk) == (str(tmp_path), 3 * MIB)
        assert abs(found.server - worker.memory) < MIB, "it is both here"
        assert usage(pid, [pid], disk=False).workers[pid].disk == 0
        assert Usage.of({**found.as_dict(), "workers": {str(pid): found.as_dict()["workers"][pid]}}) == found


def test_what_two_processes_share_counts_once(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as (parent, child):
        assert descendants(parent) == [child]
        together = pss(parent) + pss(child)
    assert 64 * MIB <= together < 100 * MIB, "each alone would be said to hold 64 MiB"


def test_a_server_that_is_gone_takes_nothing() -> None:
    assert usage(2**22 + 1, [], disk=True) == Usage(0, {})


def test_links_and_holes_take_no_room(tmp_path: Path) -> None:
    """TorchServe's copy of a slim archive is mostly links into the cache, which counts for itself."""
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_bytes(os.urandom(5 * MIB))
    (folder / "file").write_bytes(os.urandom(MIB))
    (folder / "link").symlink_to(outside)
    (folder / "below" / "second name").hardlink_to(folder / "file")
    with (folder / "hole").open("wb") as hole:
        hole.truncate(9 * MIB)
    assert MIB <= on_disk(folder) <= MIB + 8192, "a link with a long target has a block of its own"
    assert on_disk(folder / "file") == MIB and on_disk(folder / "none") == 0
