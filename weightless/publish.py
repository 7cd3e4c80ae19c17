"""Publication: how a folder becomes a release, so that no wrong or mixed folder ever can.

Hash the source → upload what the bucket does not hold with that digest → read each object back by version and take the
version whose digest matches → write the manifest, which must not exist yet → move the alias, last. The source is hashed by
BLAKE3 alone; the SHA-256 of a release is that of the object version, read once for both. Who else writes at the same time,
and where this process is killed, does not matter: a release names object versions, and each of them has
been read. How bytes get into the bucket is the caller's: `upload` is a callable.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from weightless.digests import Digests, blake3_of_file
from weightless.errors import Conflict, InvalidRelease, StoreError, VerificationFailed
from weightless.fetch.readback import read_back
from weightless.lanes import Lanes, Progress
from weightless.paths import checked_path, release_number
from weightless.release import Alias, Content, FileEntry, Location, Release, ReleaseSettings
from weightless.store import ObjectVersion, Store

log = logging.getLogger(__name__)

#: files below this size go to the bucket together: starting a program for each would cost more than they do
SMALL = 64 << 20


@dataclass(frozen=True)
class Upload:
    """A file that must come to lie in the bucket of models as `key`."""

    source: Path
    key: str
    size: int


#: upload(files, moved) puts all files into the bucket of models, and raises a StoreError if it could not. It calls `moved`
#: often, with the bytes moved since the last call; an exception from there means that it must stop. Several threads call it.
Uploader = Callable[[Sequence[Upload], Callable[[int], None]], None]


@dataclass(frozen=True)
class Published:
    """What came of it. `new` is False when the folder already was this release; `uploaded` is in bytes."""

    release: Release
    new: bool
    uploaded: int


@dataclass(frozen=True)
class Source:
    """A folder on disk: `paths` are relative to `root`, with their sizes in bytes."""

    root: Path
    paths: Mapping[str, int]


def publish_folder(
    store: Store,
    model: str,
    source: Source,
    settings: ReleaseSettings,
    origin: dict[str, str | None],
    upload: Uploader,
    progress: Progress | None = None,
) -> Published:
    """Make a release of a folder on disk, or find the one that it already is.

    `origin` says where the files come from, for the manifest. The alias is not touched; see `point_alias`.

    Raises:
        InvalidFolder: a file vanished or cannot be read.
        VerificationFailed: what the bucket holds is not what was on disk, as when a file was changed meanwhile.
        StoreError: the store, or what `upload` raises.
    """
    holdings = Holdings.of(store, model)
    lanes = Lanes(progress)
    securing = _Securing(store, model, source, holdings, upload, lanes.progress)
    placed = [one for batch in lanes.run(securing.secure, _batches(source.paths)) for one in batch]
    return _write(store, model, placed, settings, origin, holdings, securing.uploaded)


def publish_bucket(
    store: Store,
    model: str,
    versions: Sequence[ObjectVersion],
    settings: ReleaseSettings,
    origin: dict[str, str | None],
    progress: Progress | None = None,
) -> Published:
    """Make a release of these object versions of the model's folder in the bucket, each read once unless a release knows it.

    Raises:
        Conflict: the folder changed in the bucket meanwhile; what would be released might be a mixture.
    """
    holdings = Holdings.of(store, model)
    lanes = Lanes(progress)

    def place(version: ObjectVersion) -> tuple[FileEntry, str]:
        digests = holdings.known.get((version.key, version.version_id))
        if digests is None:
            digests = read_back(
                store, version.key, version.version_id, read=lambda count: lanes.progress("verify", count)
            )
        else:
            lanes.progress("verify", version.size)
        return _entry(version.key.removeprefix(f"{model}/"), digests), version.version_id

    placed = lanes.run(place, versions)
    now = {version.key: version.version_id for version in visible(store.object_versions(model))}
    if any(now.get(version.key) != version.version_id for version in versions):
        raise Conflict(
            f"model {model}: its folder in the bucket changed while it was read; try again when uploads are done"
        )
    return _write(store, model, placed, settings, origin, holdings, 0)


def publish_release(
    store: Store, name: str, content: Content, source: Source, upload: Uploader, progress: Progress | None = None
) -> Release:
    """Bring a known release into a store, as from a backup: the same name, content and digest, its files out of a folder.

    A release of that name and digest that is there already is returned. The alias is not touched.

    Raises:
        Conflict: the store has another release of that name, or deleted files of this one.
        VerificationFailed: the folder's files are not those that the content names.
    """
    model, holdings = content.model, Holdings.of(store, content.model)
    if name in store.releases(model):
        there = store.release(model, name)
        if there.digest != content.digest:
            raise Conflict(f"release {name} of {model}: required digest {content.digest}, the store has {there.digest}")
        if not holdings.complete(there):
            raise Conflict(
                f"release {name} of {model}: its manifest is in the store, object versions that it names are not"
            )
        return there
    lanes = Lanes(progress)
    securing = _Securing(store, model, source, holdings, upload, lanes.progress)
    placed = dict(one for batch in lanes.run(securing.secure, _batches(source.paths)) for one in batch)
    wrong = [file.path for file in content.files if file not in placed]
    if wrong:
        raise VerificationFailed(
            f"release {name} of {model}: {wrong[0]} in {source.root} is not the file that the release names; nothing was published"
        )
    versions = {f"{model}/{file.path}": placed[file] for file in content.files}
    return store.put_release(
        Release.make(name, content, Location(bucket=store.settings.models_bucket, versions=versions))
    )


def point_alias(store: Store, release: Release, by: str, *, only_first: bool = False) -> bool:
    """Let `serving` name this release; True if it was moved.

    With `only_first` an alias that exists stays as it is. When two publish at once, the alias ends at the later release.
    """
    seen = store.alias(release.model)
    while True:
        if seen is not None:
            named = seen.alias
            if only_first or (named and (named.release, named.digest) == (release.name, release.digest)):
                return False
        try:
            store.put_alias(release.model, Alias.of(release, by), seen)
            return True
        except Conflict:
            seen = store.alias(release.model)
            if seen and seen.alias and release_number(seen.alias.release) > release_number(release.name):
                return False


def visible(versions: Iterable[ObjectVersion]) -> list[ObjectVersion]:
    """What a plain listing shows: the latest version of each key, unless it is a deletion."""
    return [version for version in versions if version.latest and not version.deleted]


@dataclass
class Holdings:
    """What the bucket is known to hold for a model.

    `known`: digests of (key, version id), from manifests whose publication read them back; a version never changes.
    `versions`: key → its versions that exist now, newest first. `releases`: newest first.
    """

    releases: list[Release]
    known: dict[tuple[str, str], Digests]
    versions: dict[str, list[ObjectVersion]]

    @classmethod
    def of(cls, store: Store, model: str) -> "Holdings":
        releases = []
        for name in reversed(store.releases(model)):
            try:
                releases.append(store.release(model, name))
            except InvalidRelease as error:
                log.warning("%s; it is left out of account", error)
        known = {
            (release.key(file), release.version(file)): Digests(size=file.size, blake3=file.blake3, sha256=file.sha256)
            for release in releases
            for file in release.content.files
        }
        return cls(releases, known, _by_key(store.object_versions(model)))

    def complete(self, release: Release) -> bool:
        """Whether every object version that the release names still exists."""
        return all(
            any(version.version_id == wanted for version in self.versions.get(key, ()))
            for key, wanted in release.location.versions.items()
        )


@dataclass
class _Securing:
    """Gets files into the bucket and finds the object version of each."""

    store: Store
    model: str
    source: Source
    holdings: Holdings
    upload: Uploader
    progress: Progress
    uploaded: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def secure(self, batch: Sequence[str]) -> list[tuple[FileEntry, str]]:
        """For each path of the batch its entry and the version that holds it, uploading what is not held."""
        sizes = self.source.paths
        # A file of a size that the bucket has no version of must be uploaded whatever its digest is: both at once.
        fresh = [path for path in batch if not self._candidates(path, sizes[path])]
        with ThreadPoolExecutor(2, "hash") as pool:
            hashing = {path: pool.submit(self._hash, path) for path in batch}
            self._upload(fresh)
            wanted = {path: future.result() for path, future in hashing.items()}
        placed: dict[str, tuple[FileEntry, str]] = {}
        for path in set(batch) - set(fresh):
            found = self._find(path, wanted[path], self._candidates(path, sizes[path]))
            if found is not None:
                placed[path] = found
                self.progress("upload", sizes[path])
        self._upload([path for path in batch if path not in placed and path not in fresh])
        placed |= self._arrived({path: wanted[path] for path in batch if path not in placed})
        return [placed[path] for path in batch]

    def _arrived(self, uploaded: Mapping[str, str]) -> dict[str, tuple[FileEntry, str]]:
        """The object versions that uploads made, each read back: among versions that were not there before."""
        listed = _by_key(self.store.object_versions(self.model)) if uploaded else {}
        placed = {}
        for path, wanted in uploaded.items():
            key = self._key(path)
            before = {version.version_id for version in self.holdings.versions.get(key, ())}
            new = [version for version in listed.get(key, ()) if version.version_id not in before]
            found = self._find(path, wanted, new)
            if found is None:
                raise VerificationFailed(
                    f"{key}: required an object version with BLAKE3 {wanted} after the upload, found none among "
                    f"{len(new)} new ones; was the file changed meanwhile? Nothing was published; seed again"
                )
            placed[path] = found
        return placed

    def _find(self, path: str, wanted: str, candidates: Sequence[ObjectVersion]) -> tuple[FileEntry, str] | None:
        """The version with this BLAKE3: one that a release knows, or the newest whose bytes, read now, have it.

        The release's SHA-256 is that of those very bytes: a second pass over the file might find others by then.
        """
        key, size = self._key(path), self.source.paths[path]
        unknown = []
        for version in candidates:
            known = self.holdings.known.get((key, version.version_id))
            if known is not None and (known.size, known.blake3) == (size, wanted):
                self.progress("verify", size)
                return _entry(path, known), version.version_id
            if known is None and version.size == size:
                unknown.append(version)
        for version in unknown:
            read: list[int] = []

            def told(count: int, read: list[int] = read) -> None:
                read.append(count)
                self.progress("verify", count)

            found = read_back(self.store, key, version.version_id, read=told)
            if (found.size, found.blake3) == (size, wanted):
                return _entry(path, found), version.version_id
            self.progress("verify", -sum(read))
        return None

    def _upload(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        files = [Upload(self.source.root / path, self._key(path), self.source.paths[path]) for path in paths]
        self.upload(files, lambda count: self.progress("upload", count))
        with self._lock:
            self.uploaded += sum(file.size for file in files)

    def _hash(self, path: str) -> str:
        return blake3_of_file(self.source.root / path, lambda count: self.progress("hash", count))

    def _candidates(self, path: str, size: int) -> list[ObjectVersion]:
        return [version for version in self.holdings.versions.get(self._key(path), ()) if version.size == size]

    def _key(self, path: str) -> str:
        return f"{self.model}/{checked_path(path)}"


def _write(
    store: Store,
    model: str,
    placed: Sequence[tuple[FileEntry, str]],
    settings: ReleaseSettings,
    origin: dict[str, str | None],
    holdings: Holdings,
    uploaded: int,
) -> Published:
    """Write the manifest under the next free number, unless a release already says the same."""
    content = Content(
        model=model,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source=origin,
        files=tuple(entry for entry, _ in placed),
        settings=settings,
    )
    location = Location(
        bucket=store.settings.models_bucket, versions={f"{model}/{entry.path}": version for entry, version in placed}
    )
    while True:
        for release in holdings.releases:
            if release.content.same_model_as(content) and holdings.complete(release):
                return Published(release, new=False, uploaded=uploaded)
        taken = [release_number(name) for name in store.releases(model)]
        release = Release.make(f"v{max(taken, default=0) + 1}", content, location)
        try:
            release = store.put_release(release)
            break
        except Conflict:  # somebody else published at the same time: perhaps this very folder
            holdings = Holdings.of(store, model)
    if not Holdings([], {}, _by_key(store.object_versions(model))).complete(release):
        raise StoreError(
            f"release {release.name} of {model}: object versions that it names were deleted while it was published; seed again "
            "when nobody prunes"
        )
    return Published(release, new=True, uploaded=uploaded)


def _entry(path: str, digests: Digests) -> FileEntry:
    return FileEntry(path=path, size=digests.size, blake3=digests.blake3, sha256=digests.sha256)


def _by_key(versions: Iterable[ObjectVersion]) -> dict[str, list[ObjectVersion]]:
    grouped: dict[str, list[ObjectVersion]] = {}
    for version in versions:
        if not version.deleted:
            grouped.setdefault(version.key, []).append(version)
    return grouped


def _batches(sizes: Mapping[str, int]) -> list[list[str]]:
    """All small files in one batch, and each large one in its own; the small ones first, since they fail fast."""
    small = [path for path, size in sizes.items() if size < SMALL]
    large = [[path] for path, size in sizes.items() if size >= SMALL]
    return [small, *large] if small else large
