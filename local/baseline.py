"""The stock TorchServe for comparisons, started and stopped on demand beside the stack."""

from __future__ import annotations

import subprocess
import time

from local import engine, say, stack, up
from local.config import ROOT, Setup
from local.errors import LocalError


def start(setup: Setup) -> int:
    """Start it and wait until it answers.

    Raises:
        LocalError: the stack is not up, or the program ended.
    """
    if engine.choose(setup) == "docker":
        return _compose(setup, "up", "--detach", "--wait", "baseline")
    if not stack.is_running(setup):
        raise LocalError("the stack is not up; start it first with make up")
    stack.baseline_wish(setup).touch()
    while True:
        entry = stack.state(setup).get("programs", {}).get("baseline", {})
        if entry.get("state") == "ready":
            say.mark(
                "ok", "baseline", f"{entry['seconds']:5.1f} s  stock TorchServe, for the load test's embedded starts"
            )
            return 0
        if entry.get("state") == "failed":
            stack.baseline_wish(setup).unlink(missing_ok=True)
            raise LocalError(f"baseline {entry['remark']}; the end of its log:\n{up.tail(setup, 'baseline')}")
        if not stack.is_running(setup):
            raise LocalError("the stack went down meanwhile; make logs")
        say.busy("baseline", up.tail(setup, "baseline", 1).strip())
        time.sleep(0.1)


def stop(setup: Setup) -> int:
    """Stop it and free its memory; nothing to stop is no error."""
    if engine.choose(setup) == "docker":
        return _compose(setup, "stop", "baseline")
    stack.baseline_wish(setup).unlink(missing_ok=True)
    while stack.is_running(setup) and "baseline" in stack.state(setup).get("programs", {}):
        time.sleep(0.1)
    say.lines(["baseline is stopped."])
    return 0


def _compose(setup: Setup, *words: str) -> int:
    argv = engine.compose("--profile", "baseline", *words, quiet=not say.TERMINAL)
    return subprocess.run(argv, cwd=ROOT, env=engine.environment(setup), check=False).returncode
