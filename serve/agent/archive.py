"""The slim MAR: 100 kilobytes of handler that name a release. Built by torch-model-archiver, 0.2 s, the first time.

What differs from one release to another are two small files. The rest is kept in memory for as long as no file of it changes, so
that a swap starts no archiver beside the workers that answer meanwhile.

At its root lie minio_handler.py, tasks/ and weightless/, and a model-config.yaml that pins release and digest (or follows the
alias) and carries the node's settings. It needs nothing else: any TorchServe 0.12 that has the store's endpoint and
credentials in its environment can serve it.
"""

import asyncio
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from blake3 import blake3

import weightless
from serve.agent.settings import child_environment, python
from weightless.errors import SettingsError, WeightlessError
from weightless.modelfile import NodeSettings
from weightless.release import Release

HANDLER_FILE = "minio_handler.py"
CONFIG_FILE, MANIFEST_FILE = "model-config.yaml", "MAR-INF/MANIFEST.json"
RETRY_WINDOW_S = (
    30  # how long TorchServe itself brings a dead worker back (after 1, 1, 2, 3, 5, 8 s); then the agent does
)
STARTUP_SLACK_S = (
    5  # TorchServe kills a worker this much later than the agent gives up, so that the agent says why it ended
)
FOLLOW_ALIAS = "serving"
_NOT_FOR_HANDLERS = {
    f"weightless/{module}.py" for module in ("publish", "lanes", "modelfile", "fetch/readback")
}  # they publish, or are the agent's


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
            "startupTimeout": node.startup_timeout_s + STARTUP_SLACK_S,
            "responseTimeout": node.response_timeout_s,
            "maxRetryTimeoutInSec": RETRY_WINDOW_S,
            "jobQueueSize": node.job_queue_size,
            "weightless": pinned | {"node": node.model_dump(mode="json")},
        }


@dataclass(frozen=True)
class _Base:
    """An archive without the two files that tell one release's from another's; `manifest` is one of the two, as it was built."""

    code: bytes
    manifest: dict[str, Any]


_BASES: dict[str, _Base] = {}  # by the digest of what lies in them, the oldest first
_KEPT = 4


async def build_slim(archive: SlimArchive, handler_dir: Path, destination: Path) -> int:
    """Build the archive at `destination` (replaced at once if it exists) and return its size in bytes.

    Raises:
        SettingsError: the handler folder has no handler.
        ArchiveFailed: the archiver's own words.
    """
    code = await asyncio.to_thread(_read, handler_dir)
    key = _digest(code, archive.node.requirements)
    base = _BASES.get(key)
    if base is None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Beside what is built, in a folder that an agent empties at its start: one that was killed leaves nothing in /tmp.
        base = _BASES[key] = await _build_base(archive, code, destination.parent)
        while len(_BASES) > _KEPT:
            del _BASES[next(iter(_BASES))]
    return await asyncio.to_thread(_complete, base, archive, destination)


async def _build_base(archive: SlimArchive, code: Mapping[Path, bytes], where: Path) -> _Base:
    with tempfile.TemporaryDirectory(prefix="slim-", dir=where) as folder:
        # One parent for all folders that go in: the archiver flattens each extra folder by one level.
        temp, stage = Path(folder), Path(folder) / "stage"
        for inside, content in code.items():
            path = (temp if inside == Path(HANDLER_FILE) else stage) / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        config = temp / CONFIG_FILE
        config.touch()
        options = ["--config-file", str(config)]
        if archive.node.requirements:
            requirements = temp / "requirements.txt"
            requirements.write_text("\n".join(archive.node.requirements) + "\n")
            options += ["--requirements-file", str(requirements)]
        built = await archiver(archive.model, archive.version, temp / HANDLER_FILE, [stage], temp, "default", options)
        return await asyncio.to_thread(_split, built)


def _split(built: Path) -> _Base:
    code = io.BytesIO()
    with zipfile.ZipFile(built) as mar, zipfile.ZipFile(code, "w") as kept:
        for entry in mar.infolist():
            if entry.filename not in (CONFIG_FILE, MANIFEST_FILE):
                kept.writestr(entry, mar.read(entry))
        manifest = json.loads(mar.read(MANIFEST_FILE))
    return _Base(code.getvalue(), manifest)


def _complete(base: _Base, archive: SlimArchive, destination: Path) -> int:
    named = {"modelName": archive.model, "modelVersion": archive.version}
    manifest = base.manifest | {"model": base.manifest["model"] | named}
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    partial.write_bytes(base.code)
    with zipfile.ZipFile(partial, "a", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr(CONFIG_FILE, yaml.safe_dump(archive.config(), sort_keys=False))
        mar.writestr(MANIFEST_FILE, json.dumps(manifest, indent=2))
    partial.replace(destination)
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


def _read(handler_dir: Path) -> dict[Path, bytes]:
    """What goes in besides the two files of `_Base`, by its path in the archive: no caches, hidden files, or what publishes."""
    if not (handler_dir / HANDLER_FILE).is_file():
        raise SettingsError(f"HANDLER_DIR: required {HANDLER_FILE} in {handler_dir}, found none")
    found = {}
    for source in (handler_dir / HANDLER_FILE, *_helpers(handler_dir), Path(weightless.__file__).parent):
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            inside = path.relative_to(source.parent)
            hidden = any(part == "__pycache__" or part[0] == "." for part in inside.parts)
            unused = str(inside) in _NOT_FOR_HANDLERS
            if not (hidden or unused) and path.suffix != ".pyc" and path.is_file():
                found[inside] = path.read_bytes()
    return found


def _digest(code: Mapping[Path, bytes], requirements: Sequence[str]) -> str:
    contents = [(str(path), blake3(content).hexdigest()) for path, content in code.items()]
    return blake3(json.dumps([contents, list(requirements)]).encode()).hexdigest()


def _helpers(handler_dir: Path) -> list[Path]:
    """What lies beside the handler and goes along: modules and packages."""
    beside = sorted(path for path in handler_dir.iterdir() if path.name != HANDLER_FILE and path.name[0] not in "._")
    return [path for path in beside if path.suffix == ".py" or (path / "__init__.py").is_file()]
