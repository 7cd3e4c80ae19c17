"""MinIO's own client `mc`, driven as a program.

Keys reach it in a configuration file (0600, in a folder of its own that is removed afterwards, see `scratch`) or on standard
input, never as arguments: those are readable in every process list.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seeding.scratch import scratch
from weightless.errors import AccessDenied, ObjectLocked, SettingsError, StoreError, StoreUnavailable
from weightless.settings import StoreSettings

#: the store's name in mc's configuration
ALIAS = "store"
_DENIED = ("access key id", "signature", "insufficient permissions", "access denied", "accessdenied", "not authorized")
_LOCKED = re.compile(r"'(?P<key>[^']+) \(Version ID=(?P<version>[^)]+)\)' is WORM protected")
_AWAY = ("connection refused", "no such host", "i/o timeout", "connection reset", "no route to host", "eof")


@dataclass(frozen=True)
class Mc:
    """A configured mc; make one with `configured_mc`. `config_dir` is its own, and what lies there goes with it."""

    program: str
    config_dir: Path
    endpoint: str
    access_key: str

    def run(self, *arguments: str, stdin: str = "") -> list[dict[str, Any]]:
        """Run one mc command and return its JSON lines.

        Raises AccessDenied, StoreUnavailable, ObjectLocked, or StoreError with mc's own words for what is none of these.
        """
        process = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True, check=False)
        return self.result(process.returncode, process.stdout, process.stderr, arguments)

    def run_watched(self, *arguments: str, watch: Callable[[int], None], interval: float = 0.2) -> None:
        """Like `run`; meanwhile `watch` is called with the process id every `interval` seconds."""
        with (
            tempfile.TemporaryFile("w+") as out,
            subprocess.Popen(
                self.command(*arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            try:
                while process.poll() is None:
                    watch(process.pid)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(interval)
            except BaseException:
                process.kill()  # an upload that nobody waits for would go on filling the bucket
                raise
            out.seek(0)
            self.result(process.returncode, out.read(), "", arguments)

    def command(self, *arguments: str) -> list[str]:
        return [self.program, "--config-dir", str(self.config_dir), "--json", "--quiet", *arguments]

    def result(self, status: int, out: str, err: str, arguments: tuple[str, ...]) -> list[dict[str, Any]]:
        lines = list(_json_lines(out))
        failures = [line for line in lines if line.get("status") == "error"]
        if status == 0 and not failures:
            return lines
        # mc tells of one cause for each file it could not copy; the first says it.
        message = _message(failures[0]) if failures else (err or out).strip()[-500:]
        what = f"mc {' '.join(arguments[:2])}"
        if locked := _LOCKED.search(message):
            raise ObjectLocked(f"{locked['key']} (version {locked['version']})")
        lowered = message.lower()
        if any(word in lowered for word in _DENIED):
            raise AccessDenied(
                f"{what}: the store at {self.endpoint} refused access key {self.access_key}: {message} "
                "Check S3_ACCESS_KEY and S3_SECRET_KEY, or S3_CREDENTIALS_DIR"
            )
        if any(word in lowered for word in _AWAY):
            raise StoreUnavailable(
                f"{what}: the store at {self.endpoint} cannot be reached ({message}); is it running?"
            )
        raise StoreError(f"{what}: exit status {status}: {message}")


@contextlib.contextmanager
def configured_mc(settings: StoreSettings, program: str = "mc") -> Iterator[Mc]:
    """An mc that knows the store as `ALIAS`, for as long as the block lasts.

    Raises:
        SettingsError: there is no such program.
    """
    found = shutil.which(program)
    if found is None:
        raise SettingsError(
            f"required MinIO's client mc, found no program {program!r}; `make install` builds it, or set MC to its path"
        )
    access_key, secret_key = settings.credentials()
    endpoint = str(settings.s3_endpoint).rstrip("/")
    alias = {"url": endpoint, "accessKey": access_key, "secretKey": secret_key, "api": "S3v4", "path": "auto"}
    with scratch() as folder:
        config = folder / "config.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"version": "10", "aliases": {ALIAS: alias}}), encoding="utf-8")
        if settings.s3_ca_bundle is not None:
            certificates = folder / "certs" / "CAs"
            certificates.mkdir(parents=True)
            shutil.copy(settings.s3_ca_bundle, certificates / "bundle.crt")
        yield Mc(found, folder, endpoint, access_key)


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _message(line: dict[str, Any]) -> str:
    error = line.get("error")
    if not isinstance(error, dict):
        return str(error)
    cause = error.get("cause", {}).get("message", "")
    return f"{error.get('message', '')} {cause}".strip()
