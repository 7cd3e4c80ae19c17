"""Kernel file locks (flock): they die with their holder, hold across containers that share a volume, and need no write permission.

A lock belongs to the opened file, not to its name, so whoever gets one checks that the name still leads to what was locked.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from weightless.errors import CacheError


def lock_fd(fd: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file. False if it is held by somebody else and `wait` is False.

    Raises:
        CacheError: the file system has no such locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise CacheError(
                f"CACHE_DIR: required a file system with file locks, found one without ({error.strerror}); use a local disk"
            ) from error
        raise
    return True


def still_named(fd: int, path: Path) -> bool:
    """Whether the name leads to the opened file, and not to one that took its place."""
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_ino, named.st_dev) == (opened.st_ino, opened.st_dev)


def open_locked(path: Path, flags: int, mode: int = 0o666, *, shared: bool = False, wait: bool = True) -> int | None:
    """Open and lock a file, and return its descriptor when the name still leads to it; closing it unlocks.

    None if somebody else holds it and `wait` is False. A file that is made gets the permission bits `mode`, whatever the umask.

    Raises:
        FileNotFoundError: there is no such file and `flags` do not create it.
    """
    while True:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
        try:
            if not lock_fd(fd, shared=shared, wait=wait):
                os.close(fd)
                return None
            if still_named(fd, path):
                if flags & os.O_CREAT:
                    set_mode(fd, mode)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed or replaced between open and lock: look again


def set_mode(fd: int, mode: int) -> None:
    """Give an open file these permission bits if it is ours; another user of the group had the same idea."""
    status = os.fstat(fd)
    if status.st_mode & 0o777 != mode and status.st_uid == os.geteuid():
        os.fchmod(fd, mode)


@contextlib.contextmanager
def locked(path: Path, mode: int = 0o666) -> Iterator[None]:
    """Hold the exclusive lock on a file that is there for nothing else; made if it is absent."""
    fd = open_locked(path, os.O_RDONLY | os.O_CREAT, mode)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)
