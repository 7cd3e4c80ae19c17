"""A blob on its way: the partial file, the sidecar that says which parts of it are finished, and the digest in order.

The lock on the partial file is the lock on fetching that blob: whoever holds it fetches, everybody else waits. Parts may
finish in any order; BLAKE3 wants the bytes in order. So the part at the front of the file is hashed while it streams (its bytes
are in the processor's cache then, 6 GB/s a core), and parts that finished ahead of it are read back from the page cache
when their turn comes (4 GB/s). Bytes that an earlier process left are read back in the same way, so nothing
counts that was not hashed by the process that gives the file its final name.
"""

import errno
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Self

from blake3 import blake3

from weightless.errors import CacheError, NotEnoughDisk
from weightless.fetch.plan import Span, merged, parts_left, reach
from weightless.locks import open_locked, set_mode
from weightless.release import FileEntry

_log = logging.getLogger(__name__)
_ALLOCATE_FROM = 1 << 20
# The page cache takes as large a folio as one write fills. Up to 32 KiB (order 3) come from the processor's own lists of pages that
# were just in use; larger ones from free memory that a virtual machine's host may have taken back, and then each page waits
# for the host: writes of 1 MiB took 3.8 s for 2 GiB, of 32 KiB 0.7, and where memory is warm both 0.5.
_WRITE_BYTES = 32 << 10


class Partial:
    """One file being fetched by this process. Its methods may be called from any thread."""

    def __init__(self, fd: int, path: Path, entry: FileEntry, part_bytes: int, mode: int) -> None:
        """Use `Partial.open`."""
        self.entry = entry
        self._fd = fd
        self._path = path
        self._part_bytes = part_bytes
        self._mode = mode
        self._lock = threading.Lock()
        self._hash = blake3()
        self._position = 0  # how far the digest has come
        self._hashing = False  # somebody is moving it on
        self.hash_seconds = 0.0  # what that took, of whichever threads
        self._finished: list[Span] = self._left_before()

    @classmethod
    def open(cls, path: Path, entry: FileEntry, part_bytes: int, mode: int) -> Self | None:
        """Take the lock on fetching this blob; None if another process (or another fetch in this one) has it.

        `mode`: permission bits of what is made, whatever the umask.
        """
        with _disk(path):
            fd = open_locked(path, os.O_RDWR | os.O_CREAT, mode, wait=False)
            if fd is None:
                return None
            try:
                return cls(fd, path, entry, part_bytes, mode)
            except BaseException:
                os.close(fd)
                raise

    # ---- parts

    def left(self) -> list[Span]:
        """The parts that are not finished, in order."""
        with self._lock:
            return parts_left(self.entry.size, self._finished, self._part_bytes)

    @property
    def finished_bytes(self) -> int:
        with self._lock:
            return sum(map(len, self._finished))

    def allocate(self, part: Span) -> None:
        """Reserve the part's blocks: a third less time in `write` on ext4, and a full disk is noticed here."""
        if len(part) >= _ALLOCATE_FROM:
            with _disk(self._path):
                os.posix_fallocate(self._fd, part.start, len(part))

    def claim(self, offset: int) -> bool:
        """Whether the digest stands at this offset and nobody moves it: then the caller hashes as it writes, and must `unclaim`."""
        with self._lock:
            if self._hashing or self._position != offset:
                return False
            self._hashing = True
            return True

    def unclaim(self) -> None:
        with self._lock:
            self._hashing = False

    def write(self, data: memoryview, offset: int, *, claimed: bool) -> None:
        """Write bytes where they belong; hash them too if the caller holds the claim."""
        if claimed:
            self._update(data)
            self._position = offset + len(data)
        with _disk(self._path):
            while data:
                written = os.pwrite(self._fd, data[:_WRITE_BYTES], offset)
                data, offset = data[written:], offset + written

    def finish(self, part: Span) -> None:
        """Note that all bytes of the part are written, for this process and for one that may have to go on later."""
        with self._lock:
            self._finished = merged([*self._finished, part])
            if self.entry.size > self._part_bytes:
                self._note()

    # ---- the digest

    def catch_up(self, buffer: memoryview) -> None:
        """Hash what is finished and stands in front of the digest, unless somebody does so already."""
        while True:
            with self._lock:
                end = reach(self._position, self._finished)
                if self._hashing or end <= self._position:
                    return
                self._hashing = True
            try:
                self._hash_up_to(end, buffer)
            finally:
                self.unclaim()

    def hashed_whole(self) -> bool:
        """Whether every byte went into the digest."""
        with self._lock:
            return not self._hashing and self._position == self.entry.size

    def found(self) -> str:
        """The BLAKE3 of all bytes, in hex."""
        return str(self._hash.hexdigest())

    # ---- the end, one of these

    def commit(self, final: Path) -> None:
        """Give the verified file its final name, readable by all who may read the cache, and unlock it."""
        with _disk(self._path):
            set_mode(self._fd, self._mode & 0o444)
            self._path.rename(final)
            if self.entry.size > self._part_bytes:
                self._sidecar.unlink(missing_ok=True)
        self.close()

    def start_over(self) -> None:
        """Forget every byte: they were not the release's."""
        with self._lock:
            self._hash, self._position, self._finished = blake3(), 0, []
            with _disk(self._path):
                self._sidecar.unlink(missing_ok=True)
                os.ftruncate(self._fd, 0)

    def discard(self) -> None:
        """Remove the file and unlock it."""
        self._sidecar.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Unlock; what is finished stays for whoever comes next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---- below

    def _hash_up_to(self, end: int, buffer: memoryview) -> None:
        while self._position < end:
            with _disk(self._path):
                got = os.preadv(self._fd, [buffer[: end - self._position]], self._position)
            if not got:
                raise CacheError(f"{self._path}: required {end} bytes, found {self._position}: somebody shortened it")
            self._update(buffer[:got])
            self._position += got

    def _update(self, data: memoryview) -> None:
        began = time.perf_counter()
        self._hash.update(data)
        self.hash_seconds += time.perf_counter() - began

    def _left_before(self) -> list[Span]:
        """Parts that an earlier process finished, by the sidecar; none if it is missing or makes no sense."""
        size = os.fstat(self._fd).st_size
        try:
            spans = finished_parts(self._sidecar) if size else []
        except ValueError as error:
            _log.warning("%s: not usable, fetching the whole file: %s", self._sidecar, error)
            spans = []
        spans = [span for span in spans if span.end <= min(size, self.entry.size)]
        if not spans and size:
            os.ftruncate(self._fd, 0)
        return merged(spans)

    @property
    def _sidecar(self) -> Path:
        return self._path.with_name(f"{self._path.name}.parts")

    def _note(self) -> None:
        draft = self._sidecar.with_name(f"{self._sidecar.name}.new")
        with _disk(self._path):
            draft.unlink(missing_ok=True)
            draft.write_text(json.dumps([[span.start, span.end] for span in self._finished]))
            draft.chmod(self._mode)
            draft.rename(self._sidecar)


def finished_parts(sidecar: Path) -> list[Span]:
    """What a sidecar says; empty if there is none.

    Raises:
        ValueError: it is not a sidecar.
    """
    try:
        listed = json.loads(sidecar.read_text())
    except FileNotFoundError:
        return []
    if not isinstance(listed, list):
        raise ValueError(f"required a list, found {type(listed).__name__}")
    try:
        return [Span(int(start), int(end)) for start, end in listed]
    except TypeError as error:
        raise ValueError(str(error)) from None


class _disk:  # noqa: N801  # a context manager, entered once a MiB: a class costs a third of a generator
    """Say what an error of the disk means."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NotEnoughDisk(
                    f"CACHE_DIR: the disk became full while {self._path.name} was written; free some or `make cache-prune`"
                ) from error
            raise CacheError(
                f"{self._path}: {error.strerror}; check the disk and who may write to CACHE_DIR"
            ) from error
