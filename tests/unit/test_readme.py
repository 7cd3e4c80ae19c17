"""What the README names exists: targets, files, settings, and the exact text of every error it explains."""

import re
import subprocess

import pytest

from tests.readme import TEXT, Command, troubles
from tests.services import ROOT

PROGRAM_TEXT = "\n".join(
    path.read_text()
    for folder in ("weightless", "handler", "serve", "minio-init", "commands", "local")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


def test_every_make_command_is_a_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", TEXT))
    assert named and named <= targets


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("text", troubles())
def test_every_error_it_explains_is_one_that_the_programs_say(text: str) -> None:
    if text.startswith("503"):
        return  # a status, not a text
    source = re.sub(r'"\s*\n\s*f?"', "", PROGRAM_TEXT)  # a message may go on in the next line
    for piece in re.split("…", text):
        assert re.sub(r"\s+", " ", piece).strip() in re.sub(r"\{[^{}]*\}", "…", source), piece


def test_what_is_shown_must_be_printed() -> None:
    command = Command("make x", ("a   b …", "…", "end"))
    assert command.shows("a b 17\nanything\nend\n")
    assert not command.shows("a c 17\nanything\nend\n")
    assert not command.shows("a b 17\nanything\n")
