"""Embedded archives, for comparison: the whole model folder inside, as torch-model-archiver users have it, and the stock TorchServe
that they are measured on.

An archive is built once for each release and form, in the folder that the agent and the baseline service share, and kept.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from serve.agent.archive import archiver
from serve.agent.errors import ApiError
from serve.agent.management import Management
from serve.agent.rollout import Tools
from serve.agent.settings import ROOT, AgentSettings
from serve.agent.usage import Usage, on_disk
from weightless.release import Release

HANDLER = ROOT / "serve" / "embedded" / "embedded_handler.py"
FORMS = {
    "mar": ("default", ".mar"),
    "store": ("zip-store", ".mar"),
    "tgz": ("tgz", ".tar.gz"),
    "no-archive": ("no-archive", ""),
}
_BUILDING = ".building-"


@dataclass(frozen=True)
class Built:
    """`seconds` None: it was there. `bytes` of the archive, or of all files of a folder."""

    path: Path
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Baseline:
    """The stock TorchServe beside this node. `usage_url` None: what it takes cannot be asked."""

    inference_url: str
    management_url: str
    usage_url: str | None
    store: Path

    @classmethod
    async def of(cls, settings: AgentSettings) -> "Baseline":
        """The baseline of the settings, if it runs; ApiError 503 with what to do if not."""
        urls = settings.baseline_inference_url, settings.baseline_management_url
        if urls[0] is None or urls[1] is None or settings.baseline_store is None:
            names = "BASELINE_INFERENCE_URL, BASELINE_MANAGEMENT_URL, BASELINE_STORE"
            raise ApiError(503, "no_baseline", f"required a baseline TorchServe ({names}), found none configured")
        usage = str(settings.baseline_usage_url).rstrip("/") if settings.baseline_usage_url else None
        baseline = cls(str(urls[0]).rstrip("/"), str(urls[1]).rstrip("/"), usage, settings.baseline_store)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(f"{baseline.inference_url}/ping"),
            ):
                return baseline
        except (aiohttp.ClientError, TimeoutError):
            raise ApiError(
                503,
                "no_baseline",
                f"required the baseline TorchServe at {baseline.inference_url}, found no answer; `make baseline` starts it",
            ) from None

    def management(self) -> Management:
        return Management(self.management_url)

    async def usage(self, session: aiohttp.ClientSession, workers: list[int], disk: bool) -> Usage | None:
        """What its Java server and these workers take; None where it cannot be asked."""
        if self.usage_url is None:
            return None
        query = {"workers": ",".join(map(str, workers)), "disk": str(int(disk))}
        try:
            async with session.get(f"{self.usage_url}/usage", params=query) as answer:
                return Usage.of(await answer.json())
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return None


class Forms:
    """The releases of this node's store as embedded archives."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._one = asyncio.Lock()

    def release(self, model: str, name: str | None) -> Release:
        """The named release; without a name what is served, else (published to be measured only) the newest."""
        store = self._tools.store
        if name is not None:
            return store.release(model, name)
        alias = store.alias(model)
        published = store.releases(model) if alias is None or alias.alias is None else []
        return store.release(model, published[-1]) if published else store.serving(model)

    async def complete(self, release: Release) -> None:
        """Bring the release into the node's cache, if it is not there."""
        if not await asyncio.to_thread(self._tools.cache.is_complete, release):
            await self._tools.fetch(release, lambda progress: None)

    async def embedded(self, release: Release, form: str, store: Path) -> Built:
        """Build, or find, the release's archive of that form.

        Raises:
            ArchiveFailed: the archiver's own words. WeightlessError: the release cannot be had.
        """
        archive_format, suffix = FORMS[form]
        destination = store / f"{release.model}--{release.digest[7:19]}--{form}{suffix}"
        async with self._one:
            if destination.exists():
                return Built(destination, await asyncio.to_thread(_size, destination), None)
            await self.complete(release)
            with self._tools.cache.use(release):
                return await _build(release, self._tools.cache.folder(release), archive_format, destination)


async def _build(release: Release, folder: Path, archive_format: str, destination: Path) -> Built:
    destination.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Beside its destination, so that it is moved there by a rename, and on a disk that holds it (/tmp may be memory).
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=destination.parent) as temp:
        built = await archiver(release.model, release.name, HANDLER, [folder], Path(temp), archive_format, [])
        seconds = time.monotonic() - began
        built.rename(destination)
    return Built(destination, await asyncio.to_thread(_size, destination), round(seconds, 3))


def written(store: Path) -> int:
    """Bytes that the archive which is being built has on disk so far: a copy of the model folder, then the archive."""
    return sum(on_disk(folder) for folder in store.glob(f"{_BUILDING}*"))


def _size(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )
