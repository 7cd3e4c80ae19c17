"""What a person sees: marks and a little colour on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable

TERMINAL = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
COLOUR = TERMINAL and not os.environ.get("NO_COLOR")
MARKS = {"ok": ("✓", "32"), "wrong": ("✗", "31"), "note": ("!", "33"), "busy": ("…", "36")}


def styled(text: str, code: str) -> str:
    """Text in an ANSI style, where the terminal shows it."""
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def bold(text: str) -> str:
    return styled(text, "1")


def dim(text: str) -> str:
    return styled(text, "2")


def mark(kind: str, name: str, text: str = "", width: int = 12) -> None:
    """One line: a mark, a name in a column, what there is to say."""
    _clear()
    sign, code = MARKS[kind]
    print(f"  {styled(sign, code)} {name:<{width}} {text}".rstrip(), flush=True)


def busy(name: str, text: str = "", width: int = 12) -> None:
    """The line that is overwritten while something goes on; nothing where there is no terminal."""
    if TERMINAL:
        spin = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(time.monotonic() * 10) % 10]
        room = shutil.get_terminal_size().columns - width - 6
        print(f"\r\033[2K  {styled(spin, '36')} {name:<{width}} {dim(text[:room])}", end="", flush=True)


def lines(texts: Iterable[str]) -> None:
    _clear()
    for text in texts:
        print(text, flush=True)


def error(text: str) -> None:
    """The one line, or the few, that say what is wrong."""
    _clear()
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[31;1merror:\033[0m {text}" if colour else f"error: {text}", file=sys.stderr, flush=True)


def agreed(question: str, yes: bool) -> bool:
    """Ask on a terminal; elsewhere only YES=yes agrees."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        return input(f"{question} Type yes to go on: ").strip().lower() == "yes"
    print()
    return False


def size(count: float) -> str:
    """Bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _clear() -> None:
    if TERMINAL:
        print("\r\033[2K", end="", flush=True)
