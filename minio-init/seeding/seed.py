"""One seeding: from wherever the model lies to a release that is served."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seeding.disk import check_space, store_space
from seeding.folder import Folder, check, is_other_format, is_part, local_folder
from seeding.mc import Mc, configured_mc
from seeding.progress import Display, size
from seeding.settings import SeedSettings
from seeding.task import release_settings
from seeding.upload import McUploader
from weightless.errors import InvalidFolder, InvalidRelease, ModelNotFound, SettingsError
from weightless.modelfile import HubSource, ModelFile, load_model_file
from weightless.paths import checked_model, checked_path
from weightless.publish import Published, Source, point_alias, publish_bucket, publish_folder, visible
from weightless.release import Release
from weightless.settings import StoreSettings
from weightless.store import ObjectVersion, Store

BUCKET = "bucket"
SAMPLE = "sample:"


@dataclass(frozen=True)
class Wish:
    """What a person asked for. `origin`: a folder's path, `bucket`, or None for what the model's file or `hub` says."""

    model: str
    hub: str | None = None
    origin: str | None = None
    task: str | None = None
    promote: bool = True
    keep: bool = False
    #: as at the first start of the stack: an alias that exists stays
    only_first: bool = False


@dataclass(frozen=True)
class Seeded:
    """The end state. Bytes and seconds; `new` is False when the folder already was this release."""

    model: str
    release: str
    digest: str
    task: str
    source: dict[str, str | None]
    files: int
    bytes: int
    new: bool
    uploaded: int
    promoted: bool
    serving: str | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Seeding:
    """Seeds into one store, showing progress on one display."""

    def __init__(self, store: StoreSettings, settings: SeedSettings, display: Display) -> None:
        self._store_settings = store
        self._settings = settings
        self._display = display

    def seed(self, wish: Wish) -> Seeded:
        """Publish a release as wished, and let the alias name it unless that was not wanted.

        Raises WeightlessError: each says what was required, what was found and what to do; nothing half-made is left.
        """
        started = time.monotonic()
        model = checked_model(wish.model)
        file = load_model_file(self._settings.models_config_dir, model)
        store = Store(self._store_settings)
        store.check()
        with configured_mc(self._store_settings, self._settings.mc) as mc:
            if wish.origin == BUCKET:
                published = self._bucket(store, file, wish)
            elif wish.origin is not None and wish.origin.startswith(SAMPLE):
                published = self._sample(store, mc, file, wish, wish.origin.removeprefix(SAMPLE))
            elif wish.origin is not None:
                published = self._folder(store, mc, file, wish, Path(wish.origin), {"folder": Path(wish.origin).name})
            else:
                published = self._elsewhere(store, mc, file, wish)
            release = published.release
            promoted = wish.promote and point_alias(store, release, self._settings.by, only_first=wish.only_first)
            if wish.origin != BUCKET and (published.new or promoted):
                self._tidy(store, mc, release)
        alias = store.alias(model)
        return Seeded(
            model=model,
            release=release.name,
            digest=release.digest,
            task=release.content.settings.task,
            source=release.content.source,
            files=len(release.content.files),
            bytes=release.content.size,
            new=published.new,
            uploaded=published.uploaded,
            promoted=promoted,
            serving=alias.alias.release if alias and alias.alias else None,
            seconds=round(time.monotonic() - started, 3),
        )

    def _elsewhere(self, store: Store, mc: Mc, file: ModelFile, wish: Wish) -> Published:
        """From the hub if the wish or the model's file names a repository, else the sample of that name."""
        source = hub_source(wish.hub, file)
        if source is not None:
            return self._hub(store, mc, file, wish, source)
        if (sample := self._settings.samples_dir / file.name).is_dir():
            return self._sample(store, mc, file, wish, file.name)
        named = sorted(path.stem for path in self._settings.models_config_dir.glob("*.yaml"))
        raise ModelNotFound(
            f"model {file.name}: required a source, found none: {self._settings.models_config_dir}/{file.name}.yaml names no "
            f"repository, and there is no sample in {sample}; give --hf org/repo (HF=… with make), --from FOLDER or --from "
            f"bucket (FROM=…). Models with a file: {', '.join(named) or 'none'}"
        )

    def _sample(self, store: Store, mc: Mc, file: ModelFile, wish: Wish, name: str) -> Published:
        """One of the models that are made on the spot; a model may have several, to show a change of release."""
        folder = self._settings.samples_dir / checked_model(name)
        if not folder.is_dir():
            there = sorted(path.name for path in self._settings.samples_dir.glob("*/"))
            raise InvalidFolder(
                f"sample {name}: required a folder {folder}, found none; there are {', '.join(there) or 'no samples at all'}"
            )
        return self._folder(store, mc, file, wish, folder, {"sample": name})

    def _hub(self, store: Store, mc: Mc, file: ModelFile, wish: Wish, source: HubSource) -> Published:
        from seeding.hub import Hub, bytes_present  # the hub's client takes half as long to import as all the rest

        settings = self._settings
        token = settings.hf_token.get_secret_value() if settings.hf_token else None
        hub = Hub(settings.hf_endpoint, token)
        snapshot = hub.snapshot(source, with_code=file.release.trust_remote_code)
        folder = settings.download_dir / snapshot.repo.replace("/", "--")
        sizes = {one.path: one.size for one in snapshot.files}
        missing = snapshot.size - bytes_present(snapshot, folder)
        self._display.say(f"{snapshot.repo} at {snapshot.commit}: {len(sizes)} files, {size(snapshot.size)}")
        self._display.say(
            check_space(missing, settings.download_dir, _upload_bytes(store, file.name, sizes), store_space(mc))
        )
        self._display.begin("download", total=snapshot.size)
        hub.download(snapshot, folder, lambda count: self._display.advance("download", count))
        origin: dict[str, str | None] = {"huggingface": snapshot.repo, "revision": snapshot.commit}
        published = self._folder(store, mc, file, wish, folder, origin)
        if not wish.keep:
            shutil.rmtree(folder)
        return published

    def _folder(
        self, store: Store, mc: Mc, file: ModelFile, wish: Wish, root: Path, origin: dict[str, str | None]
    ) -> Published:
        folder = local_folder(root)
        self._say_left_out(folder)
        check(folder, trust_remote_code=file.release.trust_remote_code)
        settings = release_settings(folder, file.release, wish.task)
        need = _upload_bytes(store, file.name, folder.files)
        self._display.say(check_space(0, root, need, store_space(mc)))
        self._display.begin("hash", "upload", "verify", total=sum(folder.files.values()))
        upload = McUploader(mc, self._store_settings.models_bucket)
        source = Source(root, folder.files)
        return publish_folder(store, file.name, source, settings, origin, upload, self._display.advance)

    def _bucket(self, store: Store, file: ModelFile, wish: Wish) -> Published:
        versions = {
            version.key.removeprefix(f"{file.name}/"): version for version in visible(store.object_versions(file.name))
        }
        left_out = tuple(path for path in versions if is_other_format(path))
        versions = {
            path: version
            for path, version in versions.items()
            if is_part(path) and path not in left_out and not path.endswith("/")
        }
        if not versions and not left_out:
            bucket = self._store_settings.models_bucket
            raise InvalidFolder(
                f"bucket {bucket}: required a model below {file.name}/, found nothing; upload one there, or give --from FOLDER"
            )
        folder = replace(bucket_folder(store, file.name, versions), left_out=left_out)
        self._say_left_out(folder)
        check(folder, trust_remote_code=file.release.trust_remote_code)
        settings = release_settings(folder, file.release, wish.task)
        self._display.begin("verify", total=sum(folder.files.values()))
        origin: dict[str, str | None] = {"bucket": f"{self._store_settings.models_bucket}/{file.name}"}
        return publish_bucket(store, file.name, list(versions.values()), settings, origin, self._display.advance)

    def _say_left_out(self, folder: Folder) -> None:
        if folder.left_out:
            more = f" and {len(folder.left_out) - 1} more" if len(folder.left_out) > 1 else ""
            self._display.say(f"left out, since only safetensors are served: {folder.left_out[0]}{more}")

    def _tidy(self, store: Store, mc: Mc, release: Release) -> None:
        """Let a plain listing of the model's folder show what was published: people browse it, and publish from it."""
        versions = store.object_versions(release.model)
        shown = {version.key: version.version_id for version in visible(versions)}
        upload = McUploader(mc, self._store_settings.models_bucket)
        # What no release ever named was put there by somebody else, and is left alone.
        named = {key for name in store.releases(release.model) for key in _keys(store, release.model, name)}
        upload.hide(sorted((set(shown) & named) - set(release.location.versions)))
        for key, version_id in release.location.versions.items():
            # Not by ETag: that of a copy differs from its source's, as does that of the same bytes in parts of another size.
            if key not in shown or (shown[key] != version_id and store.copied_from(key) != version_id):
                upload.show(key, version_id)


def _keys(store: Store, model: str, name: str) -> set[str]:
    try:
        return set(store.release(model, name).location.versions)
    except InvalidRelease:  # publication has warned of it
        return set()


def _upload_bytes(store: Store, model: str, sizes: Mapping[str, int]) -> int:
    """The most that an upload can come to: files of a size that the bucket has no version of."""
    held = {(version.key, version.size) for version in store.object_versions(model) if not version.deleted}
    return sum(size for path, size in sizes.items() if (f"{model}/{path}", size) not in held)


def bucket_folder(store: Store, model: str, versions: dict[str, ObjectVersion]) -> Folder:
    """The model's folder as it lies in the bucket, read by version."""

    def read(path: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        version = versions[path]
        with store.open(version.key, version.version_id, offset, length) as response:
            return response.read(length)

    bucket = store.settings.models_bucket
    return Folder(f"{bucket}/{model}", {checked_path(path): version.size for path, version in versions.items()}, read)


def hub_source(wished: str | None, file: ModelFile) -> HubSource | None:
    """The repository to download: `org/repo` or `org/repo@revision` as wished, else what the model's file says."""
    if wished is None:
        return file.source
    repo, _, revision = wished.partition("@")
    same = file.source if file.source and file.source.repo == repo else None
    try:
        return HubSource(
            repo=repo,
            revision=revision or (same.revision if same else "main"),
            patterns=same.patterns if same else None,
        )
    except ValidationError:
        raise SettingsError(
            f"repository: required org/repo or org/repo@revision, found {wished!r}; copy it from the model's page"
        ) from None
