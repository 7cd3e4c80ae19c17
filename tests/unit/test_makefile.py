"""The Makefile: every target explains itself, and what is missing or misspelt is said before anything runs."""

import os
import re
import subprocess

import pytest

from local.helping import targets
from tests.services import ROOT


def make(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | environ
    return subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def phony() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {name for line in lines if line.startswith(".PHONY:") for name in line.split()[1:]}


def test_help_lists_every_target_with_its_own_words() -> None:
    assert {target.name for target in targets()} == phony()
    shown = make("help")
    assert shown.returncode == 0
    for name in phony():
        assert re.search(rf"^  {name} +\S", shown.stdout, re.MULTILINE), name


def test_make_alone_shows_the_help() -> None:
    assert make().stdout == make("help").stdout


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["seed"], "MODEL"),
        (["promote", "MODEL=falcon-tiny"], "RELEASE"),
        (["promote", "RELEASE=v2"], "MODEL"),
        (["rollback"], "MODEL"),
        (["history"], "MODEL"),
        (["predict", "MODEL=falcon-tiny"], "INPUT"),
        (["mar"], "MODEL"),
        (["retry"], "MODEL"),
        (["prune", "MODEL=falcon-tiny"], "KEEP"),
        (["backup"], "TO"),
        (["restore"], "FROM"),
    ],
)
def test_a_missing_variable_is_named_with_an_example(words: list[str], missing: str) -> None:
    shown = make(*words)
    assert shown.returncode == 2
    assert f"make {words[0]} needs {missing}=…" in shown.stderr
    assert shown.stdout == ""


def test_a_misspelt_variable_does_not_pass_in_silence() -> None:
    shown = make("seed", "MODEL=falcon-tiny", "PROMTE=no")
    assert shown.returncode == 2
    assert "unknown variable PROMTE" in shown.stderr


def dry(*words: str) -> str:
    shown = make("--dry-run", *words)
    assert shown.returncode == 0, shown.stderr
    return " ".join(shown.stdout.replace("\\\n", " ").split())


def test_seed_passes_on_what_was_asked_for() -> None:
    assert dry("seed", "MODEL=x", "HF=a/b").endswith('run -- -m seeding seed "$MODEL" --hf "$HF"')
    assert dry("seed", "MODEL=x", "PROMOTE=no", "KEEP=yes").endswith('seed "$MODEL" --no-promote --keep')
    assert dry("seed", "MODEL=x", "PROMOTE=yes", "KEEP=no").endswith('seed "$MODEL"')
    assert dry("seed", "MODEL=x", "FROM=bucket").endswith('run -- -m seeding seed "$MODEL" --from bucket')
    assert '--folder "$FROM" --' in dry("seed", "MODEL=x", "FROM=/some/folder")


def test_text_reaches_a_command_untouched_by_shell_and_make() -> None:
    """Quotes, dollars and backticks in INPUT are the model's business."""
    text = """it's "so" $HOME $(shell echo ran) $5 `id`"""
    assert '-- "$MODEL" "$INPUT"' in dry("predict", "MODEL=x", f"INPUT={text}")
    for name in ("INPUT", "PARAMETERS"):
        arrived = make("predict", "MODEL=x", f"INPUT={text}", f"PARAMETERS={text}", f"PYTHON=printenv {name}; true")
        assert arrived.stdout.strip() == text
