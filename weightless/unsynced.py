"""Which blobs may not have reached the disk yet. fsync costs about a second a GB, so it happens after a model is ready.

Before the first of a fetch's blobs gets its final name, a list of them is written and synced: `unsynced/<boot>.<random>`.
While this boot lasts, what was written can be read back whatever becomes of the processes. A list of another boot means that the
machine stopped before the sync: the blobs it names are suspect until they are hashed again.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weightless.locks import locked, open_locked

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Unsynced:
    """The lists in one cache. `blob` says where a digest's file lies; `make_folder` and `mode` are how the cache makes things."""

    def __init__(
        self, folder: Path, blob: Callable[[str], Path], make_folder: Callable[[Path], None], mode: int, boot: str = ""
    ) -> None:
        self._folder = folder
        self._blob = blob
        self._make_folder = make_folder
        self._mode = mode
        self._boot = boot or _BOOT_ID.read_text().strip()

    @contextlib.contextmanager
    def expecting(self, digests: Iterable[str]) -> Iterator[None]:
        """Blobs of these digests may be made within the block, and are not synced."""
        self._make_folder(self._folder)
        path = self._folder / f"{self._boot}.{secrets.token_hex(8)}"
        fd = open_locked(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._mode)  # locked: not to be tidied away
        assert fd is not None
        try:
            os.write(fd, "".join(f"{digest}\n" for digest in digests).encode())
            os.fsync(fd)
            _sync(self._folder)
            yield
        finally:
            os.close(fd)

    def suspects(self) -> set[str]:
        """Digests of blobs that were not synced when the machine stopped."""
        return {digest for path, digests in self._lists() if not self._is_of_this_boot(path) for digest in digests}

    def sync(self, digests: set[str]) -> int:
        """Bring the blobs of these digests to the disk, with all that were fetched together with them; return the bytes."""
        synced = 0
        for path, named in self._lists():
            if not named & digests or not self._is_of_this_boot(path):
                continue
            there = [self._blob(digest) for digest in named if self._blob(digest).exists()]
            synced += sum(map(_sync, there))
            if there:
                _sync(there[0].parent)
            if len(there) == len(named):  # else a fetch is under way, or was given up and may be taken up again
                path.unlink(missing_ok=True)
        return synced

    def recover(self, digests: set[str], hashed: Callable[[str], str]) -> list[str]:
        """Hash again the suspects among these, with all that stand in one list with them, and remove those that are wrong.

        Returns the digests whose blobs were removed. One process does it while others wait.
        """
        bad: list[str] = []
        with locked(self._folder / "lock", self._mode):
            for path, named in self._lists():
                if self._is_of_this_boot(path) or not named & digests:
                    continue
                for digest in sorted(named):
                    if self._blob(digest).exists() and hashed(digest) != digest:
                        self._blob(digest).unlink(missing_ok=True)
                        bad.append(digest)
                path.unlink(missing_ok=True)  # what is right was read from the disk, so it is on it
        return bad

    def tidy(self) -> None:
        """Drop lists of which no blob is there and no fetch is under way."""
        for path, named in self._lists():
            if any(self._blob(digest).exists() for digest in named):
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = open_locked(path, os.O_RDONLY, wait=False)
                if fd is not None:
                    path.unlink(missing_ok=True)
                    os.close(fd)

    def _lists(self) -> list[tuple[Path, set[str]]]:
        found: list[tuple[Path, set[str]]] = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir()):
                if "." in path.name:  # the other file is the lock
                    with contextlib.suppress(FileNotFoundError):
                        found.append((path, set(path.read_text().split())))
        return found

    def _is_of_this_boot(self, path: Path) -> bool:
        return path.name.startswith(f"{self._boot}.")


def _sync(path: Path) -> int:
    """fsync a file or a folder; return its size in bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
