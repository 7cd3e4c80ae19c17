"""What a worker's start left behind: the ledger of its phases, and the reason why it failed.

A handler writes `<pid>.json` into the folder that its archive names. What it printed lies in worker.log, one line a message,
behind the name of TorchServe's reader thread: `W-9500-falcon-tiny_v1-stdout`.
"""

import json
import re
from pathlib import Path
from typing import Any

_TAIL_BYTES = 256 << 10
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)")
_SAYS_NOTHING = re.compile(r"^RuntimeError: \d{3} - ")  # TorchServe's own, raised after it logged what happened


def log_position(log_dir: Path) -> int:
    """Where the log ends now, to be given to `failure_reason` later."""
    try:
        return (log_dir / "worker.log").stat().st_size
    except FileNotFoundError:
        return 0


def failure_reason(log_dir: Path, model: str, version: str, position: int) -> str | None:
    """The last exception that a worker of this version printed since `position`, or None if it printed none."""
    try:
        with (log_dir / "worker.log").open("rb") as log:
            size = log.seek(0, 2)
            start = position if position <= size else 0  # it was rolled over
            log.seek(max(start, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return None
    thread = f"-{model}_{version}-std"
    said = (line.split("\t", 1)[1] for line in text.splitlines() if "\t" in line and thread in line.split("\t", 1)[0])
    reason, inside = None, False
    for line in said:
        if line.startswith("Traceback "):
            inside = True
        elif inside and _EXCEPTION.match(line):
            inside = False
            reason = reason if _SAYS_NOTHING.match(line) else line.strip()
    return reason


def read_ledger(folder: Path, pid: int | None = None) -> dict[str, Any] | None:
    """The ledger that this process wrote, or the newest; None if there is none yet."""
    pattern = f"{pid}.json" if pid is not None else "*.json"
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    try:
        ledger = json.loads(found[-1].read_bytes())
    except ValueError:  # it is being written
        return None
    return ledger if isinstance(ledger, dict) else None
