"""How results are shown: tables and colour on a terminal, plain aligned columns in a pipe, JSON for machines."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, soft_wrap=True)

Cell = str | Text
STYLES = {
    "serving": "green",
    "ready": "green",
    "starting": "cyan",
    "fetching": "cyan",
    "failed": "red bold",
    "stopped": "dim",
    "stale": "yellow",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], right: Iterable[str] = ()) -> None:
    """Rows under their headings; `right` names the columns of numbers."""
    found = [list(row) for row in rows]
    numbers = set(right)
    if not out.is_terminal:
        _plain(columns, found, numbers)
        return
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in columns:
        last = name == columns[-1]  # the one that gives way where the terminal is narrow
        shown.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=not last)
    for row in found:
        shown.add_row(*row)
    out.print(shown)


def _plain(columns: Sequence[str], rows: list[list[Cell]], numbers: set[str]) -> None:
    texts = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in texts) for at in range(len(columns))]
    for row in texts:
        cells = [cell.rjust(width) if name in numbers else cell.ljust(width)
                 for cell, width, name in zip(row, widths, columns, strict=True)]  # fmt: skip
        print("  ".join(cells).rstrip())


def data(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def say(text: str | Text = "") -> None:
    """A line of the result."""
    out.print(text, markup=False) if isinstance(text, str) else out.print(text)


def note(text: str) -> None:
    """A line beside the result, for a person: standard error."""
    err.print(Text(text, style="dim"))


def warn(text: str) -> None:
    err.print(Text.assemble(("warning: ", "yellow bold"), text))


def fail(text: str) -> None:
    err.print(Text.assemble(("error: ", "red bold"), text))


def state(name: str) -> Text:
    return Text(name, style=STYLES.get(name, ""))


def size(count: float) -> str:
    """Bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(count: float) -> str:
    """A time for people: 0.23 s, 12 s, 3 min 20 s."""
    if count < 10:
        return f"{count:.2f} s"
    if count < 100:
        return f"{count:.0f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def milliseconds(seconds: float) -> str:
    """A latency for people: 4.1 ms, 230 ms, 1.40 s."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"


def when(moment: datetime | str) -> str:
    """2026-11-22 16:10:03, in UTC, and how long ago."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}Z  {ago(datetime.now(UTC) - moment)}"


def ago(past: timedelta) -> str:
    count = max(0, int(past.total_seconds()))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if count >= length:
            return f"{count // length} {unit} ago"
    return f"{count} s ago"


def digest(text: str) -> str:
    """Enough of a digest to tell releases apart: blake3:1a2b3c4d5e6f."""
    kind, _, value = text.partition(":")
    return f"{kind}:{value[:12]}"


@contextlib.contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal whose text the caller keeps up to date; nothing elsewhere, and nothing for an empty text."""
    if not text or not err.is_terminal:
        yield lambda _: None
        return
    with err.status(text) as shown:
        yield lambda now: shown.update(Text(f"{text} {now}"))


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values under each other."""
    found = list(rows)
    width = max(len(name) for name, _ in found)
    for name, value in found:
        out.print(Text.assemble((f"{name:<{width}}  ", "dim"), value), soft_wrap=True)
