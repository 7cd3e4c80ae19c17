"""Embedded archives, for comparison: the whole model folder inside, as torch-model-archiver users have it, on a stock TorchServe.

An archive is built once for each release and form, in the folder that the agent and the baseline service share, and kept.
"""

import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from serve.agent.archive import archiver
from serve.agent.errors import ApiError
from serve.agent.management import Management
from serve.agent.settings import ROOT, AgentSettings
from weightless.release import Release

HANDLER = ROOT / "serve" / "embedded" / "embedded_handler.py"
FORMS = {
    "mar": ("default", ".mar"),
    "store": ("zip-store", ".mar"),
    "tgz": ("tgz", ".tar.gz"),
    "no-archive": ("no-archive", ""),
}


@dataclass(frozen=True)
class Built:
    """`seconds` None: it was there. `bytes` of the archive, or of all files of a folder."""

    path: Path
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Baseline:
    """The stock TorchServe beside this node."""

    inference_url: str
    management_url: str
    store: Path

    @classmethod
    async def of(cls, settings: AgentSettings) -> "Baseline":
        """The baseline of the settings, if it runs; ApiError 503 with what to do if not."""
        urls = settings.baseline_inference_url, settings.baseline_management_url
        if urls[0] is None or urls[1] is None or settings.baseline_store is None:
            names = "BASELINE_INFERENCE_URL, BASELINE_MANAGEMENT_URL, BASELINE_STORE"
            raise ApiError(503, "no_baseline", f"required a baseline TorchServe ({names}), found none configured")
        baseline = cls(str(urls[0]).rstrip("/"), str(urls[1]).rstrip("/"), settings.baseline_store)
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


async def build_embedded(release: Release, folder: Path, form: str, store: Path) -> Built:
    """Build, or find, the archive of a release. `folder` holds its files; it must be complete.

    Raises:
        ArchiveFailed: the archiver's own words.
    """
    archive_format, suffix = FORMS[form]
    destination = store / f"{release.model}--{release.digest[7:19]}--{form}{suffix}"
    if not destination.exists():
        return await _build(release, folder, archive_format, destination)
    return Built(destination, await asyncio.to_thread(_size, destination), None)


async def _build(release: Release, folder: Path, archive_format: str, destination: Path) -> Built:
    destination.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Beside its destination, so that it is moved there by a rename, and on a disk that holds it (/tmp may be memory).
    with tempfile.TemporaryDirectory(prefix=".building-", dir=destination.parent) as temp:
        built = await archiver(release.model, release.name, HANDLER, [folder], Path(temp), archive_format, [])
        seconds = time.monotonic() - began
        if destination.exists():
            await asyncio.to_thread(shutil.rmtree, destination)
        built.rename(destination)
    return Built(destination, await asyncio.to_thread(_size, destination), round(seconds, 3))


def _size(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )
