"""The slim MAR: 100 kilobytes of handler that name a release. Built by torch-model-archiver, 0.2 s.

At its root lie minio_handler.py, tasks/ and weightless/, and a model-config.yaml that pins release and digest (or follows the
alias) and carries the node's settings. It needs nothing else: any TorchServe 0.12 that has the store's endpoint and
credentials in its environment can serve it.
"""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import weightless
from serve.agent.settings import child_environment, python
from weightless.errors import SettingsError, WeightlessError
from weightless.modelfile import NodeSettings
from weightless.release import Release

HANDLER_FILE = "minio_handler.py"
RETRY_WINDOW_S = (
    30  # how long TorchServe itself brings a dead worker back (after 1, 1, 2, 3, 5, 8 s); then the agent does
)
FOLLOW_ALIAS = "serving"


class ArchiveFailed(WeightlessError):
    """torch-model-archiver refused to build the archive."""


@dataclass(frozen=True)
class SlimArchive:
    """What a slim MAR says. `release` None: follow the alias at each worker's start. `endpoint`: the store, by another door."""

    model: str
    version: str
    node: NodeSettings
    release: Release | None = None
    cache_dir: Path | None = None
    ledger_dir: Path | None = None
    endpoint: str | None = None

    def config(self) -> dict[str, Any]:
        """The contents of model-config.yaml."""
        node, release = self.node, self.release
        continuous = node.continuous(None if release is None else release.content.settings.task)
        pinned: dict[str, Any] = {"model": self.model, "release": FOLLOW_ALIAS}
        if release is not None:
            pinned |= {"release": release.name, "digest": release.digest, "manifest_version": release.manifest_version}
        places = {"cache_dir": self.cache_dir, "ledger_dir": self.ledger_dir, "endpoint": self.endpoint}
        pinned |= {name: str(place) for name, place in places.items() if place is not None}
        return {
            "minWorkers": node.workers,
            "maxWorkers": node.workers,
            "continuousBatching": continuous,
            "batchSize": node.batch_size or (16 if continuous else 1),
            "maxBatchDelay": 1 if continuous else node.max_batch_delay_ms,
            "startupTimeout": node.startup_timeout_s,
            "responseTimeout": node.response_timeout_s,
            "maxRetryTimeoutInSec": RETRY_WINDOW_S,
            "jobQueueSize": node.job_queue_size,
            "weightless": pinned | {"node": node.model_dump(mode="json")},
        }


async def build_slim(archive: SlimArchive, handler_dir: Path, destination: Path) -> int:
    """Build the archive at `destination` (replaced at once if it exists) and return its size in bytes.

    Raises:
        SettingsError: the handler folder has no handler.
        ArchiveFailed: the archiver's own words.
    """
    with tempfile.TemporaryDirectory(prefix="slim-") as temp:
        stage = Path(temp) / "stage"
        await asyncio.to_thread(_stage, stage, handler_dir)
        config = Path(temp) / "model-config.yaml"
        config.write_text(yaml.safe_dump(archive.config(), sort_keys=False))
        options = ["--config-file", str(config)]
        if archive.node.requirements:
            requirements = Path(temp) / "requirements.txt"
            requirements.write_text("\n".join(archive.node.requirements) + "\n")
            options += ["--requirements-file", str(requirements)]
        built = await archiver(
            archive.model, archive.version, handler_dir / HANDLER_FILE, [stage], Path(temp), "default", options
        )
        destination.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(_move, built, destination)
    return destination.stat().st_size


async def archiver(
    model: str, version: str, handler: Path, extra: list[Path], temp: Path, form: str, options: list[str]
) -> Path:
    """Run torch-model-archiver; the archive's path, a file or (`no-archive`) a folder, inside `temp`.

    The archiver stages everything in $TMPDIR/<model> and deletes that folder first, so each run gets a TMPDIR of its own.
    """
    out = temp / "out"
    out.mkdir()
    command = [python(), "-m", "model_archiver.model_packaging", "--model-name", model, "--version", version, "--force"]
    command += ["--handler", str(handler), "--extra-files", ",".join(map(str, extra)), "--export-path", str(out)]
    command += ["--archive-format", form, *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=child_environment({"TMPDIR": str(temp), "PYTHONDONTWRITEBYTECODE": "1"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode:
        said = output.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise ArchiveFailed(f"archive of {model} {version}: torch-model-archiver failed: {said[-1]}")
    return next(out.iterdir())


def _stage(stage: Path, handler_dir: Path) -> None:
    """One parent for all folders that go in: the archiver flattens each extra folder by one level."""
    if not (handler_dir / HANDLER_FILE).is_file():
        raise SettingsError(f"HANDLER_DIR: required {HANDLER_FILE} in {handler_dir}, found none")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    stage.mkdir()
    for source in (*_helpers(handler_dir), Path(weightless.__file__).parent):
        if source.is_dir():
            shutil.copytree(source, stage / source.name, ignore=ignored)
        else:
            shutil.copy2(source, stage / source.name)


def _helpers(handler_dir: Path) -> list[Path]:
    """What lies beside the handler and goes along: modules and packages, no caches or hidden files."""
    beside = sorted(path for path in handler_dir.iterdir() if path.name != HANDLER_FILE and path.name[0] not in "._")
    return [path for path in beside if path.suffix == ".py" or (path / "__init__.py").is_file()]


def _move(built: Path, destination: Path) -> None:
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.copyfile(built, partial)
    partial.replace(destination)
