"""The supervisor: starts the programs in order, each once the one before is ready, restarts what dies, stops all in reverse.

`python -m local.stack` is the detached process that does it. That it runs is a lock that it holds, which the kernel releases
with it; what it knows is `.run/state.json`. Its children die with it also after SIGKILL; whatever should still be there is
found by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local import processes, programs, say
from local.config import ROOT, Setup
from local.programs import Program

BACKOFF = (0.5, 1, 2, 5, 10, 30)  # seconds before a program that died is started again; calm for a minute starts over
CALM = 60.0


@dataclass
class Running:
    """One program as `.run/state.json` shows it: waiting, starting, ready, done, failed or stopped."""

    program: Program
    state: str = "waiting"
    pid: int = 0
    remark: str = ""
    seconds: float = 0.0
    restarts: int = 0
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    again_at: float = 0.0

    def shown(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("state", "pid", "remark", "seconds", "restarts")}


@dataclass
class Supervisor:
    """Runs until SIGTERM, or until a program fails before the stack was up."""

    setup: Setup
    entries: dict[str, Running] = field(default_factory=dict)
    phase: str = "starting"
    stopping: bool = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        processes.adopt_orphans()
        self.entries = {program.name: Running(program) for program in programs.stack(self.setup)}
        self._write()
        failed = not all(self._bring_up(entry) for entry in self.entries.values())
        if not failed:
            self.phase = "running"
            self._write()
            while not self.stopping:
                self._tend()
                time.sleep(0.2)
        self.phase = "failed" if failed and not self.stopping else "stopped"
        for entry in reversed(list(self.entries.values())):
            self._stop(entry)
        self._write()
        return 1 if self.phase == "failed" else 0

    def _on_stop(self, *_: object) -> None:
        self.stopping = True

    # ---- one program

    def _bring_up(self, entry: Running) -> bool:
        """Start it and wait until it is ready (or, once, at its end); False if it ended otherwise, or all is to stop."""
        self._start(entry)
        while not self.stopping:
            assert entry.process is not None
            ended = entry.process.poll()
            entry.seconds = round(time.monotonic() - entry.began, 1)
            if ended is not None and not (entry.program.once and ended == 0):
                entry.state, entry.remark = "failed", f"ended with status {_status(ended)}"
                self._write()
                return False
            remark = None if entry.program.once else entry.program.ready()
            if ended == 0 or remark is not None:
                entry.state, entry.remark = ("done" if entry.program.once else "ready"), remark or ""
                self._write()
                return True
            time.sleep(0.05)
        return False

    def _start(self, entry: Running) -> None:
        log = programs.log_path(self.setup, entry.program.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        marks = {"WEIGHTLESS_RUN": str(self.setup.run), "WEIGHTLESS_PROGRAM": self._mark(entry)}
        with log.open("ab") as output:
            entry.process = subprocess.Popen(
                entry.program.argv,
                env={**entry.program.env, **marks},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.die_with_parent(),  # this process has one thread
            )
        entry.pid, entry.state, entry.began, entry.remark = entry.process.pid, "starting", time.monotonic(), ""
        self._write()

    def _stop(self, entry: Running) -> None:
        """SIGTERM to the program itself, which ends its own children; then an end to whatever it left behind."""
        if entry.process is not None and entry.process.poll() is None:
            entry.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                entry.process.wait(entry.program.stop_seconds)
        self._sweep(entry)
        if entry.state != "failed":
            entry.state = "done" if entry.program.once else "stopped"
        self._write()

    def _sweep(self, entry: Running) -> None:
        processes.end(lambda: processes.marked(f"WEIGHTLESS_PROGRAM={self._mark(entry)}"), grace=2)

    def _mark(self, entry: Running) -> str:
        return f"{self.setup.run}:{entry.program.name}"

    # ---- while it runs

    def _tend(self) -> None:
        """Start again what died; the baseline runs while the file that asks for it exists."""
        self._tend_baseline()
        for entry in self.entries.values():
            if entry.program.once or entry.process is None:
                continue
            ended = entry.process.poll()
            now = time.monotonic()
            if ended is None:
                if entry.state == "starting" and (remark := entry.program.ready()) is not None:
                    entry.state, entry.remark, entry.seconds = "ready", remark, round(now - entry.began, 1)
                    self._write()
                continue
            if entry.state != "failed":
                entry.restarts = 0 if now - entry.began > CALM else entry.restarts
                wait = BACKOFF[min(entry.restarts, len(BACKOFF) - 1)]
                entry.state, entry.again_at = "failed", now + wait
                entry.remark = f"ended with status {_status(ended)}; starting it again in {wait} s"
                print(f"{time.strftime('%F %T')} {entry.program.name}: {entry.remark}", flush=True)
                self._write()
            elif now >= entry.again_at:
                self._sweep(entry)
                entry.restarts += 1
                self._start(entry)
        with contextlib.suppress(ChildProcessError):  # orphans that were adopted, and ended
            known = {entry.pid for entry in self.entries.values()}
            while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and info.si_pid not in known:
                os.waitpid(info.si_pid, 0)

    def _tend_baseline(self) -> None:
        wanted, entry = baseline_wish(self.setup).exists(), self.entries.get("baseline")
        if wanted and entry is None:
            self.entries["baseline"] = Running(programs.baseline(self.setup))
            self._start(self.entries["baseline"])
        elif entry is not None and not wanted:
            self._stop(entry)
            del self.entries["baseline"]
            self._write()

    def _write(self) -> None:
        shown = {
            "pid": os.getpid(),
            "phase": self.phase,
            "fingerprint": self.setup.fingerprint,
            "programs": {name: entry.shown() for name, entry in self.entries.items()},
        }
        path = self.setup.run / "state.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(shown, indent=1))
        fresh.replace(path)


def baseline_wish(setup: Setup) -> Path:
    return setup.run / "baseline.wanted"


def state(setup: Setup) -> dict[str, Any]:
    """What the supervisor last wrote; {} if it never did."""
    try:
        document = json.loads((setup.run / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def is_running(setup: Setup) -> bool:
    """Whether a supervisor of this folder lives: it holds the lock, which the kernel releases however it ends."""
    try:
        with (setup.run / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _status(code: int) -> str:
    return f"{128 - code} ({signal.Signals(-code).name})" if code < 0 else str(code)


def main() -> int:
    setup = Setup.load()
    setup.run.mkdir(parents=True, exist_ok=True)
    with (setup.run / "lock").open("w") as lock:
        for left in reversed(range(20)):  # who only asks whether we run holds it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    say.error(f"another supervisor already runs in {setup.run}")
                    return 1
                time.sleep(0.05)
        return Supervisor(setup).run()


if __name__ == "__main__":
    sys.exit(main())
