"""The node cache: files of releases on this machine's disk, each content once, shared by every worker and container.

blobs/blake3/<hex>          verified content under its digest
partial/<hex>               content on its way, locked by whoever fetches it; <hex>.parts says which parts are finished
releases/<model>/v<N>/      relative links into blobs, and the manifest, whose lock (shared: in use) and time of
                            change (last use) steer the eviction
unsynced/                   what may not have reached the disk yet
lock                        held while a release is registered or evicted, never during a fetch
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from weightless.errors import CacheError, InvalidRelease, NotEnoughDisk
from weightless.eviction import evict, free, sweep, used
from weightless.layout import (
    MANIFEST,
    Layout,
    allocated,
    link_to,
    listed,
    make_link,
    read_manifest,
    registered_digest,
    size_of,
    write_manifest,
)
from weightless.locks import locked, open_locked, still_named
from weightless.release import FileEntry, Release
from weightless.settings import CacheSettings
from weightless.unsynced import Unsynced

_log = logging.getLogger(__name__)


class CacheEntry(NamedTuple):
    """A release in the cache. `size`: bytes of all its files; `own`: of those that no other cached release shares."""

    model: str
    name: str
    digest: str
    size: int
    own: int
    files: int
    complete: bool
    in_use: bool
    last_used: datetime
    folder: Path


class Verified(NamedTuple):
    """What `verify` found: how much was read, and the digests of blobs that were something else (they are removed)."""

    files: int
    size: int
    bad: tuple[str, ...]


class Pruned(NamedTuple):
    """What `prune` removed: releases by model and name, and bytes."""

    releases: tuple[tuple[str, str], ...]
    size: int


class NodeCache:
    """The cache in one folder. Methods may be called by many processes at once; an instance keeps no open files.

    Every method raises CacheError when the folder cannot be used as it is.
    """

    def __init__(self, settings: CacheSettings, *, evicts: bool = True) -> None:
        """`evicts`: whether a release that is not in use may go to make room for another; of a backup none may."""
        self.layout = Layout(settings.cache_dir)
        self.max_bytes = settings.cache_max_bytes
        self._evicts = evicts
        self.unsynced = Unsynced(self.layout.unsynced, self.layout.blob, self.layout.make_folder, self.layout.file_mode)

    @property
    def root(self) -> Path:
        return self.layout.root

    @property
    def writable(self) -> bool:
        """Whether this process may add to the cache."""
        return self.layout.writable

    def folder(self, release: Release) -> Path:
        """Where the release's files are, once it is complete."""
        return self.layout.folder(release)

    # ---- what is there

    def missing(self, release: Release) -> list[FileEntry]:
        """The files whose content is not there, one for each content; suspects after an unclean stop count as missing."""
        suspects = self.unsynced.suspects()
        lacking = {
            file.blake3: file
            for file in release.content.files
            if file.blake3 in suspects or size_of(self.layout.blob(file.blake3)) != file.size
        }
        return list(lacking.values())

    def is_complete(self, release: Release) -> bool:
        """Whether the folder can be used as it is. After an unclean stop of the machine call `recover` first."""
        registered = registered_digest(self.folder(release)) == release.digest
        return registered and not self.missing(release) and self._is_linked(release)

    def cached_manifests(self) -> list[Release]:
        """The releases that are registered here, complete or not (see `missing`), most recently used first."""
        return [release for _, _, release in self._by_last_use()]

    def entries(self) -> list[CacheEntry]:
        """What `make cache` shows, most recently used first."""
        found = self._by_last_use()
        holders: dict[str, int] = {}
        for _, _, release in found:
            for digest in {file.blake3 for file in release.content.files}:
                holders[digest] = holders.get(digest, 0) + 1
        return [
            CacheEntry(
                model=release.model,
                name=release.name,
                digest=release.digest,
                size=release.content.size,
                own=sum(
                    size
                    for digest, size in {file.blake3: file.size for file in release.content.files}.items()
                    if holders[digest] == 1
                ),
                files=len(release.content.files),
                complete=self.is_complete(release),
                in_use=_in_use(folder / MANIFEST),
                last_used=datetime.fromtimestamp(last_used, UTC),
                folder=folder,
            )
            for last_used, folder, release in found
        ]

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Verified:
        """Hash every blob; remove those that are not what they should be, so that the next start fetches them again.

        `progress` gets bytes done and bytes in all.
        """
        blobs = listed(self.layout.blobs)
        total, done, bad = sum(max(0, size_of(path)) for path in blobs), 0, []
        for path in blobs:
            size = size_of(path)
            with self.layout.errors(), contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                if self.layout.hashed(path.name) != path.name:
                    bad.append(path.name)
                    if self.writable:
                        path.unlink(missing_ok=True)
            done += max(0, size)
            if progress:
                progress(done, total)
        return Verified(len(blobs), done, tuple(bad))

    # ---- using a release

    @contextlib.contextmanager
    def use(self, release: Release) -> Iterator[Path]:
        """Hold the release: neither it nor its files are evicted while the block runs, in whatever process. Gives its folder.

        It is registered if it is not; `fetch_release` completes it.

        Raises:
            CacheError: the cache is read-only and does not have the release.
        """
        fd = self._hold(release)
        try:
            with contextlib.suppress(OSError):
                os.utime(self.folder(release) / MANIFEST)  # last used now; a read-only cache does without
            yield self.folder(release)
        finally:
            os.close(fd)

    def link(self, release: Release, files: Sequence[FileEntry] | None = None) -> None:
        """Make the release's folder: a relative link for each file, or for these of its files. Their blobs must be there."""
        if self._is_linked(release):
            return
        folder = self.folder(release)
        files = release.content.files if files is None else files
        with self.layout.errors():
            for parent in sorted({str(Path(file.path).parent) for file in files}):
                self.layout.make_folder(folder / parent)
            for file in files:
                make_link(folder / file.path, link_to(file))

    def sync(self, release: Release) -> int:
        """Bring what was fetched for the release to the disk; return the bytes that were not synced yet.

        Call it when the model is ready: it takes about a second a GB. Until then an unclean stop of the machine costs
        another look at the files, not the files.
        """
        if not self.writable:
            return 0
        with self.layout.errors():
            return self.unsynced.sync({file.blake3 for file in release.content.files})

    def recover(self, release: Release) -> set[str]:
        """Hash again what may not have reached the disk before the machine stopped; remove what is wrong.

        Returns the digests that are right but still count as suspects, because a read-only cache cannot note it.
        """
        digests = {file.blake3 for file in release.content.files}
        suspects = self.unsynced.suspects() & digests
        if not suspects:
            return set()
        _log.warning("the machine stopped before %d cached files were synced: hashing them again", len(suspects))
        with self.layout.errors():
            if not self.writable:
                there = {digest for digest in suspects if size_of(self.layout.blob(digest)) >= 0}
                return {digest for digest in there if self.layout.hashed(digest) == digest}
            for digest in self.unsynced.recover(digests, self.layout.hashed):
                _log.warning("cached file %s did not reach the disk whole; it will be fetched again", digest)
        return set()

    # ---- room

    def make_room(self, release: Release, missing: Sequence[FileEntry]) -> None:
        """Evict what was not used for longest until the missing files fit under CACHE_MAX_BYTES and on the disk.

        Raises:
            NotEnoughDisk: they do not, with everything evicted that is not in use.
        """
        with self.layout.errors():
            self.layout.make_folder(self.layout.blobs)
            self.layout.make_folder(self.layout.partials)
            with locked(self.layout.lock, self.layout.file_mode):
                required = sum(max(0, file.size - allocated(self.layout.partial(file.blake3))) for file in missing)
                if self._short_of(required) > 0:
                    sweep(self.layout, self.unsynced)
                if (short := self._short_of(required)) > 0 and self._evicts:
                    evict(self.layout, self.unsynced, used(self.layout) - short)
                left = self.max_bytes - used(self.layout) if self.max_bytes else required
                on_disk = free(self.layout)
        if left < required:
            raise NotEnoughDisk(
                f"{release.model} {release.name}: required {_mib(required)} within CACHE_MAX_BYTES {_mib(self.max_bytes)}, found "
                f"{_mib(max(0, left))} left beside the releases in use; raise CACHE_MAX_BYTES or stop a model"
            )
        if on_disk < required:
            raise NotEnoughDisk(
                f"{release.model} {release.name}: required {_mib(required)} on the disk of CACHE_DIR {self.root}, found "
                f"{_mib(on_disk)} free; free some, or `make cache-prune`"
            )

    def prune(self, keep_bytes: int | None = None) -> Pruned:
        """Remove what no registered release names, then releases not in use, least recently used first, until no more than
        `keep_bytes` are left (None: CACHE_MAX_BYTES, 0: everything that is not in use goes)."""
        if not self.writable:
            raise CacheError(f"CACHE_DIR {self.root}: required write permission to prune, found it read-only")
        if keep_bytes is None:
            keep_bytes = self.max_bytes or None
        elif keep_bytes == 0:
            keep_bytes = -1  # a release of empty files, or of files that all are shared, goes too
        with self.layout.errors(), locked(self.layout.lock, self.layout.file_mode):
            before = used(self.layout)
            sweep(self.layout, self.unsynced)
            evicted = [] if keep_bytes is None else evict(self.layout, self.unsynced, keep_bytes)
            return Pruned(tuple(evicted), before - used(self.layout))

    # ---- below

    def _short_of(self, required: int) -> int:
        """Bytes by which the room is too small."""
        over = used(self.layout) + required - self.max_bytes if self.max_bytes else 0
        return max(over, required - free(self.layout))

    def _by_last_use(self) -> list[tuple[float, Path, Release]]:
        found = []
        for folder in self.layout.registered():
            with contextlib.suppress(OSError, InvalidRelease):
                found.append(((folder / MANIFEST).stat().st_mtime, folder, read_manifest(folder)))
        return sorted(found, key=lambda item: item[0], reverse=True)

    def _is_linked(self, release: Release) -> bool:
        folder = self.folder(release)
        try:
            return all(str((folder / file.path).readlink()) == link_to(file) for file in release.content.files)
        except OSError:
            return False

    def _hold(self, release: Release) -> int:
        manifest = self.folder(release) / MANIFEST
        while True:
            try:
                fd = open_locked(manifest, os.O_RDONLY, shared=True)
            except (FileNotFoundError, NotADirectoryError):
                fd = None
            except OSError as error:
                raise CacheError(
                    f"{manifest}: required a cache that this user may read, found: {error.strerror}"
                ) from error
            if fd is not None:
                if registered_digest(manifest.parent) == release.digest and still_named(fd, manifest):
                    return fd
                os.close(fd)
            self._register(release)

    def _register(self, release: Release) -> None:
        """Make the release's folder with nothing but the manifest in it; another release of that name is moved aside."""
        folder = self.folder(release)
        if not self.writable:
            raise CacheError(
                f"{release.model} {release.name}: not in the cache at {self.root}, which is read-only; fill it from a node that "
                "may write, or mount it writable"
            )
        if any(file.path.split("/")[0] == MANIFEST for file in release.content.files):
            raise CacheError(
                f"{release.model} {release.name}: {MANIFEST} is the cache's own name; rename the file and publish again"
            )
        with self.layout.errors(), locked(self.layout.lock, self.layout.file_mode):
            if registered_digest(folder) == release.digest:
                return
            self.layout.make_folder(folder.parent)
            draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            self.layout.make_folder(draft)
            write_manifest(draft, release, self.layout.file_mode)
            if folder.exists():
                folder.rename(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}"))
            draft.rename(folder)


def _in_use(manifest: Path) -> bool:
    try:
        fd = open_locked(manifest, os.O_RDONLY, wait=False)
    except FileNotFoundError:
        return False
    if fd is None:
        return True
    os.close(fd)
    return False


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
