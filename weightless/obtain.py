"""From what an archive names to a complete folder on this node: find the release, fetch what is missing, keep it while in use.

With the store away, a complete release that this node has cached is used, and said to be stale: nobody could be asked
whether it still is the one to serve.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

from weightless.cache import NodeCache
from weightless.errors import SettingsError, StoreUnavailable
from weightless.fetch import FetchResult, fetch_release
from weightless.ledger import Ledger
from weightless.paths import checked_model, checked_release
from weightless.release import Release
from weightless.settings import CacheSettings, FetchSettings, StoreSettings
from weightless.store import ALIAS, Store

logger = logging.getLogger(__name__)

_CODE = (".py", ".pyc", ".pyo", ".so", ".pth")
_WEIGHTS = ".safetensors"
# Between looks at whether all but the weights is there: seconds at least, and times what a look took, which for thousands of
# files would otherwise be most of what this process does while it fetches them.
_LOOK_AGAIN_S, _LOOK_AGAIN_TIMES = 0.01, 20


class Pin(NamedTuple):
    """What an archive names: one release by its digest, or (`release` "serving") whatever the alias says when a worker starts."""

    model: str
    release: str
    digest: str | None = None
    manifest_version: str | None = None

    @property
    def follows(self) -> bool:
        return self.release == ALIAS

    @classmethod
    def of(cls, config: object) -> Self:
        """From the section `weightless` of a model-config.yaml.

        Raises:
            SettingsError: the section is missing, or does not name a release.
        """
        if not isinstance(config, Mapping):
            raise SettingsError(
                "model-config.yaml: required a section `weightless`, found none; build the archive with `make mar`"
            )
        texts: dict[str, Any] = {name: config.get(name) for name in ("model", "release", "digest", "manifest_version")}
        for name, value in texts.items():
            if not isinstance(value, str) and (value is not None or name in ("model", "release")):
                raise SettingsError(f"model-config.yaml: weightless.{name}: required a string, found {value!r}")
        checked_model(texts["model"])
        if texts["release"] != ALIAS:
            checked_release(texts["release"])
            if texts["digest"] is None:
                raise SettingsError(
                    f"model-config.yaml: weightless.digest: required for release {texts['release']}, found none; "
                    "build the archive with `make mar`"
                )
        return cls(**texts)


class Obtained(NamedTuple):
    """A release whose files lie complete and verified in `folder`. `stale`: the store was away."""

    release: Release
    folder: Path
    stale: bool
    cache: NodeCache

    def sync_later(self) -> None:
        """Bring to the disk what was fetched, by whomever: a prefetch leaves it to the worker that is READY.

        In a thread: it takes about a second a GB, for which nobody who wants answers should wait.
        """
        threading.Thread(target=self._sync, name="sync", daemon=True).start()

    def _sync(self) -> None:
        try:
            self.cache.sync(self.release)
        except Exception as error:  # the files are right all the same: an unclean stop only costs hashing them again
            logger.warning("%s %s: not synced to the disk: %s", self.release.model, self.release.name, error)


@contextlib.contextmanager
def obtain(
    pin: Pin,
    store_settings: StoreSettings,
    cache_settings: CacheSettings,
    fetch_settings: FetchSettings,
    ledger: Ledger,
    meanwhile: Callable[[Release, Path], None] | None = None,
) -> Iterator[Obtained]:
    """The pinned release's folder, fetched as far as it is not cached; its files stay cached while the block lasts.

    While weights are fetched, `meanwhile` is called with the folder as soon as all other files of it are there, verified. Its
    seconds are within those of `fetch`, and noted as `during_fetch`. It is not called where nothing is left to wait for.

    The phases `resolve` and `fetch` of the ledger are written, and the notes `stale`, `bytes_from_store`, `bytes_from_cache`,
    `fetch_mib_s`, `verify_s` (BLAKE3 while the bytes came, seconds of all threads together), `retries`, `release_digest` and, for
    an archive that follows the alias, `resolved`.

    Raises:
        StoreUnavailable: the store is away and this node has no complete copy. Other WeightlessErrors as `Store.release`,
            `Store.serving` and `fetch_release` raise them.
    """
    cache = NodeCache(cache_settings)
    with ledger.phase("resolve"):
        store = Store(store_settings, fetch_settings.fetch_connections)
        try:
            release, stale = _ask(store, pin), False
        except StoreUnavailable as error:
            release, stale = _cached(cache, pin, error), True
            logger.warning("%s; serving the cached release %s, which may be stale", error, release.name)
    with cache.use(release):
        with ledger.phase("fetch"):
            fetched = _fetch(store, cache, release, fetch_settings, ledger, meanwhile)
        ledger.note(
            stale=stale,
            bytes_from_store=fetched.bytes_from_store,
            bytes_from_cache=fetched.bytes_from_cache,
            retries=fetched.retries,
            verify_s=round(fetched.hash_seconds, 4),
            fetch_mib_s=round(fetched.bytes_from_store / 2**20 / fetched.seconds, 1)
            if fetched.bytes_from_store
            else None,
            release_digest=release.digest,
            **({"resolved": release.name} if pin.follows else {}),
        )
        yield Obtained(release, fetched.folder, stale, cache)


def link_into(obtained: Obtained, folder: Path, code: bool) -> int:
    """Links to the release's files in `folder` (TorchServe's model_dir), where a handler's author looks for them; how many.

    What lies there already is kept: the archive's own files win. Python and native modules are left out unless `code` is
    allowed: TorchServe puts that folder on the import path, where a model's `json.py` would be imported as json. A folder that
    cannot be written to is no error, since nothing of ours reads the links.
    """
    made = 0
    for file in obtained.release.content.files:
        path = PurePosixPath(file.path)
        if not code and path.suffix.lower() in _CODE:
            continue
        link = folder / path
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(obtained.folder / path)
            made += 1
        except FileExistsError:
            continue
        except OSError as error:
            logger.warning("%s: no links to the model's files (%s)", folder, error.strerror)
            break
    return made


def _fetch(
    store: Store,
    cache: NodeCache,
    release: Release,
    settings: FetchSettings,
    ledger: Ledger,
    meanwhile: Callable[[Release, Path], None] | None,
) -> FetchResult:
    if meanwhile is None or not cache.missing(release):
        return fetch_release(store, cache, release, settings=settings)
    first = [file for file in release.content.files if not file.path.endswith(_WEIGHTS)]
    with ThreadPoolExecutor(1, "fetch") as threads:
        fetching = threads.submit(fetch_release, store, cache, release, settings=settings)
        while not fetching.done():
            looked = time.monotonic()
            if all(file.path.endswith(_WEIGHTS) for file in cache.missing(release)):
                break
            wait([fetching], max(_LOOK_AGAIN_S, _LOOK_AGAIN_TIMES * (time.monotonic() - looked)))
        if not fetching.done():
            began = time.monotonic()
            cache.link(release, first)
            meanwhile(release, cache.folder(release))
            ledger.note(during_fetch=round(time.monotonic() - began, 4))
        return fetching.result()


def _ask(store: Store, pin: Pin) -> Release:
    if pin.follows:
        return store.serving(pin.model)
    return store.release(pin.model, pin.release, version_id=pin.manifest_version, digest=pin.digest)


def _cached(cache: NodeCache, pin: Pin, error: StoreUnavailable) -> Release:
    """The pinned release from the cache; for an archive that follows the alias, the one that was used last."""
    for release in cache.cached_manifests():
        if release.model == pin.model and (pin.follows or release.digest == pin.digest):
            cache.recover(release)
            if cache.is_complete(release):
                return release
    what = "any release" if pin.follows else f"release {pin.release}"
    raise StoreUnavailable(f"{error}; and this node has no complete copy of {what} of {pin.model}") from error
