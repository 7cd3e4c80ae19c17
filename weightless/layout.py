"""Where things lie in the node cache, and how its files and folders are made, listed and read.

What is made gets the permission bits of the cache's own folder, whatever the umask: `chmod 2770` it, and all users of its
group share it.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from weightless.errors import CacheError, InvalidRelease
from weightless.release import FileEntry, Release

MANIFEST = ".weightless.json"
_READ = 1 << 20


class Layout:
    """One cache folder, made if it is absent. Keeps no open files."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            bits = stat.S_IMODE(self.root.stat().st_mode)
        except OSError as error:
            raise CacheError(
                f"CACHE_DIR {self.root}: required a folder that exists or can be made, found: {error.strerror}"
            ) from error
        self.folder_mode = bits | 0o700
        self.file_mode = (bits & 0o666) | 0o600
        self.blobs = self.root / "blobs" / "blake3"
        self.partials = self.root / "partial"
        self.releases = self.root / "releases"
        self.unsynced = self.root / "unsynced"
        self.lock = self.root / "lock"

    @property
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    def folder(self, release: Release) -> Path:
        return self.releases / release.model / release.name

    def blob(self, digest: str) -> Path:
        return self.blobs / digest

    def partial(self, digest: str) -> Path:
        return self.partials / digest

    def registered(self) -> list[Path]:
        """The folders of all registered releases, those included that were moved aside for another of the same name."""
        return [
            folder for model in listed(self.releases) for folder in listed(model) if not folder.name.startswith(".")
        ]

    def hashed(self, digest: str) -> str:
        """The digest that the blob really has."""
        hasher, buffer = blake3(), memoryview(bytearray(_READ))
        with self.blob(digest).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
        return str(hasher.hexdigest())

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its parents below the root."""
        if folder.is_dir():
            return
        if folder != self.root:
            self.make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(self.folder_mode)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the disk into ours."""
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"CACHE_DIR {self.root}: {error.strerror} ({error.filename}); required a local disk that this user may write to"
            ) from error


def link_to(file: FileEntry) -> str:
    """What the link of a release's file says: relative, so that the cache may be mounted anywhere."""
    up = file.path.count("/") + 3  # releases/<model>/v<N>/
    return f"{'../' * up}blobs/blake3/{file.blake3}"


def make_link(path: Path, target: str) -> None:
    """A symbolic link, also where several processes make it at once or something else is in its place."""
    try:
        path.symlink_to(target)
    except FileExistsError:
        if path.is_symlink() and str(path.readlink()) == target:
            return
        draft = path.with_name(f".{secrets.token_hex(8)}")
        draft.symlink_to(target)
        draft.replace(path)


def write_manifest(folder: Path, release: Release, mode: int) -> None:
    document = {"manifest_version": release.manifest_version, "manifest": json.loads(release.to_json())}
    (folder / MANIFEST).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    (folder / MANIFEST).chmod(mode)


def read_manifest(folder: Path) -> Release:
    """The release that a folder is registered for.

    Raises:
        InvalidRelease: there is no manifest or it is damaged, as an unclean stop of the machine may leave it.
    """
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        raw, version = json.dumps(document["manifest"]).encode(), document["manifest_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRelease(f"{folder / MANIFEST}: required a manifest, found: {error}") from error
    return Release.from_json(folder.name.split(".")[0], raw, version)


def registered_digest(folder: Path) -> str | None:
    """The digest of the release that a folder is registered for, without checking the rest; None if it is no such folder."""
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["manifest"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def size_of(path: Path) -> int:
    """Bytes; -1 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def allocated(path: Path) -> int:
    """Bytes that the file takes on the disk, which for a partial file may be less than its size."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
