"""Takes files out of the operating system's page cache, for a start that has to read them from the disk."""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from weightless.errors import WeightlessError

_PROBES = 64  # places of a file that are looked at
_TOLERATED = 0.02


def drop(paths: Iterable[Path]) -> None:
    """Write each file out and drop its pages; of a folder, those of all its files, also through links.

    Raises:
        WeightlessError: pages stay: a process maps the file, or it lies in memory.
    """
    for path in paths:
        files = [path] if path.is_file() else [entry for entry in sorted(path.rglob("*")) if entry.is_file()]
        for file in files:
            _drop(file)


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a page that is not written yet is not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        left = _cached(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
    if left > _TOLERATED:
        raise WeightlessError(
            f"page cache: required {file} to be dropped, found {left:.0%} of it still there; a process maps it (is the model "
            "served?), or it lies in memory (tmpfs)"
        )


def _cached(descriptor: int, size: int) -> float:
    """The share of probed places that can be read without the disk; 0 where the file system cannot tell."""
    if size < _PROBES * mmap.PAGESIZE:
        return 0.0  # a mapped header is no weight
    found, buffer = 0, bytearray(1)
    # Backwards, since a read ahead follows a probe that missed.
    for probe in reversed(range(_PROBES)):
        try:
            found += os.preadv(descriptor, [buffer], size * probe // _PROBES, os.RWF_NOWAIT)
        except BlockingIOError:
            continue
        except OSError:
            return 0.0
    return found / _PROBES
