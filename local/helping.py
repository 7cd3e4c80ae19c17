"""`make help`: every target with its own comment, in the groups in which the Makefile has them."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass

from local import say
from local.config import ROOT

COLUMN = 16


@dataclass(frozen=True)
class Target:
    group: str
    name: str
    text: str


def targets() -> list[Target]:
    """What the Makefile's `name: ## text` lines say."""
    group, found = "", []
    for line in (ROOT / "Makefile").read_text().splitlines():
        if heading := re.fullmatch(r"# ---- (.+?)", line):
            group = heading[1]
        elif target := re.match(r"([a-z][\w-]*):.*?## (.+)", line):
            found.append(Target(group, target[1], target[2]))
    return found


def show() -> int:
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 140)) - COLUMN - 2
    group = ""
    for target in targets():
        if target.group != group:
            group = target.group
            say.lines(["", say.bold(group[0].upper() + group[1:])])
        rows = textwrap.wrap(target.text, width, break_on_hyphens=False)
        say.lines(
            [
                f"  {say.styled(f'{target.name:<{COLUMN}}', '36')}{rows[0]}",
                *(" " * (COLUMN + 2) + row for row in rows[1:]),
            ]
        )
    say.lines(
        [
            "",
            "Settings (ports, keys, GPU, another S3 store) are explained in .env.example; any of them may follow a command too.",
        ]
    )
    return 0
