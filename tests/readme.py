"""The README as data: the commands it shows, and what it shows that they print."""

import re
from dataclasses import dataclass

from tests.services import ROOT

TEXT = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Command:
    """A line behind `$`, and the lines that are shown below it; `…` stands for anything."""

    line: str
    output: tuple[str, ...]

    def shows(self, printed: str) -> bool:
        """Whether what was printed is what the README shows: every shown line, in order."""
        pattern = ".*".join(".*?".join(map(re.escape, _squeezed(line).split("…"))) for line in self.output)
        return re.search(pattern, _squeezed(printed), re.DOTALL) is not None


def commands(heading: str) -> list[Command]:
    """The commands of the console blocks of one section, in order."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert section, f"the README has no section {heading}"
    found: list[Command] = []
    for block in re.findall(r"```console\n(.*?)```", section[1], re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *output = part.rstrip("\n").split("\n")
            found.append(Command(line.split("   #")[0].strip(), tuple(output)))
    return found


def python_program(heading: str) -> Command:
    """The Python block of a section, and the block below it that shows what it prints."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    found = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", section[1] if section else "", re.DOTALL)
    assert found, f"the README's section {heading} shows no program and its output"
    return Command(found[1], tuple(found[2].rstrip("\n").split("\n")))


def troubles() -> list[str]:
    """The error texts of the troubleshooting table."""
    table = TEXT.split("## Troubleshooting")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


def _squeezed(text: str) -> str:
    """Runs of spaces are one: columns are as wide as what stands in them."""
    return re.sub(r"[ \t]+", " ", text)
