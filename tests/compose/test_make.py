"""The make commands on an engine, typed in the clone: what they run in, which folders they reach, and whom files belong to."""

import json
import os
import subprocess
from pathlib import Path

from seeding.samples import KNOWN

from tests.compose.stack import PROJECT, Stack


def make(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    ours = ("MAKE", "S3_", "API_KEY", "COMPOSE_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= stack.settings | {"COMPOSE_PROJECT_NAME": PROJECT, "ENGINE": "docker"}
    return subprocess.run(
        ["make", *words], cwd=stack.folder, env=env, capture_output=True, text=True, timeout=1500, check=False
    )


def done(stack: Stack, *words: str) -> str:
    ran = make(stack, *words)
    assert ran.returncode == 0, f"make {' '.join(words)}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_up_prints_a_curl_line_that_works(stack: Stack) -> None:
    printed = done(stack, "up")
    curl = next(line.strip() for line in printed.splitlines() if line.strip().startswith("curl "))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(answer) == [{"generated_text": KNOWN["falcon-tiny"].sentence}]


def test_a_folder_of_this_machine_is_seeded_under_its_own_name(stack: Stack, samples: Path) -> None:
    done(stack, "seed", "MODEL=bystander", f"FROM={samples / 'falcon-tiny'}", "PROMOTE=no")
    shown = json.loads(done(stack, "models", "MODEL=bystander", "JSON=1"))
    assert [one["source"] for one in shown["releases"]] == [{"folder": "falcon-tiny"}]
    assert shown["serving"] is None
    refused = make(stack, "seed", "MODEL=bystander", f"FROM={samples / 'nowhere'}")
    assert refused.returncode != 0
    assert "required a folder, found nothing" in refused.stderr


def test_questions_are_answered(stack: Stack) -> None:
    known = KNOWN["falcon-tiny"]
    said = done(stack, "predict", "MODEL=falcon-tiny", f"INPUT={known.prompt}", 'PARAMETERS={"do_sample": false}')
    assert said == f"{known.sentence}\n"
    assert json.loads(done(stack, "status", "JSON=1"))["healthy"] is True
    assert json.loads(done(stack, "history", "MODEL=falcon-tiny", "JSON=1"))[0]["latest"] is True
    assert json.loads(done(stack, "credentials", "JSON=1"))["user"] == "weightless-root"
    assert {entry["model"] for entry in json.loads(done(stack, "cache", "JSON=1"))} >= {"falcon-tiny", "minilm"}
    failed = make(stack, "predict", "MODEL=nobody", "INPUT=x")
    assert (failed.returncode != 0, failed.stdout) == (True, "")
    assert failed.stderr.startswith("error: model nobody: ")


def test_what_is_written_belongs_to_who_asked_for_it(stack: Stack, tmp_path: Path) -> None:
    archive = tmp_path / "tiny.mar"
    done(stack, "mar", "MODEL=falcon-tiny", f"TO={archive}")
    assert 1000 < archive.stat().st_size < 150_000
    saved = tmp_path / "saved"
    first = json.loads(done(stack, "backup", f"TO={saved}", "JSON=1"))
    assert first["fetched"] > 90_000_000
    assert json.loads(done(stack, "backup", f"TO={saved}", "JSON=1"))["fetched"] == 0
    assert {path.stat().st_uid for path in saved.rglob("*")} == {os.getuid()}
    assert json.loads(done(stack, "restore", f"FROM={saved}", "JSON=1")) == {"releases": [], "aliases": []}
