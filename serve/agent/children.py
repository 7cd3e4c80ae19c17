"""Child processes that die with the agent, and that are stopped politely first.

A child that outlived an agent killed with SIGKILL would hold TorchServe's ports and the models' memory. The kernel sends it
SIGKILL instead (PR_SET_PDEATHSIG), set by `setpriv` of util-linux: a preexec_fn may deadlock in a process with threads.
"""

import asyncio
import contextlib
import shutil
import signal
from pathlib import Path

from weightless.errors import SettingsError


def bound_to_us(command: list[str]) -> list[str]:
    """The command, made to die with this process."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SettingsError("required the program setpriv (package util-linux), found none on PATH; install it")
    return [setpriv, "--pdeathsig", "KILL", "--", *command]


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """SIGTERM, and SIGKILL when it is still there after `grace_s` seconds. Returns when it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie, whoever's child it is."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rsplit(b")", 1)[-1].split()[0] not in (b"Z", b"X")
