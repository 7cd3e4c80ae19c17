"""How a command reaches the stack: the folder that a container sees, and files that come whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from local import run
from local.config import ROOT
from local.errors import LocalError
from tests.services import free_port


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ("/home/anna/models/x", "/home/anna/models/x"),
        ("/var/lib/models", "/var/lib/models"),
        ("/opt/models", "/mnt/opt/models"),
        ("/app/models", "/mnt/app/models"),
        ("/models", "/mnt/models"),
        ("/", "/mnt"),
    ],
)
def test_a_container_sees_a_folder_under_its_own_name_unless_it_would_hide_the_image(place: str, inside: str) -> None:
    assert run._inside(Path(place)) == Path(inside)


def test_a_path_that_docker_cannot_mount_is_refused() -> None:
    with pytest.raises(LocalError, match="without a colon"):
        run._inside(Path("/home/a:b/c"))


def test_a_folder_to_read_must_exist_and_one_to_write_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="required a folder, found a file"):
        _ = run.Wanted([], folder=str(tmp_path / "file")).place
    with pytest.raises(LocalError, match="required a folder, found nothing"):
        _ = run.Wanted([], folder=str(tmp_path / "none")).place
    assert run.Wanted([], writable=str(tmp_path / "a/b")).place == tmp_path / "a/b"
    assert (tmp_path / "a/b").is_dir()
    with pytest.raises(LocalError, match="found: Not a directory"):
        _ = run.Wanted([], writable=str(tmp_path / "file/below")).place


def test_a_file_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    """A half-written archive would be found only when a TorchServe somewhere else rejects it."""
    target = tmp_path / "out/file"
    assert run._save([sys.executable, "-c", "print('whole')"], {}, target) == 0
    assert target.read_text() == "whole\n"
    assert run._save([sys.executable, "-c", "print('half'); raise SystemExit(3)"], {}, target) == 3
    assert target.read_text() == "whole\n"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("words", "status", "said"), [(["--help"], 0, "rollback"), (["no-such-command"], 2, "No such command")]
)
def test_a_commands_words_and_its_status_arrive_as_from_a_process_of_its_own(
    words: list[str], status: int, said: str, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "local", "run", "--", "-m", "commands", *words]
    env = {"ENGINE": "local", "RUN_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


def test_a_text_that_begins_with_a_dash_is_no_option(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "local", "run", "--", "-m", "commands", "predict", "--", "tiny", "-5 degrees"]
    env = {"ENGINE": "local", "RUN_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    env["AGENT_PORT"] = str(free_port())
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no agent answers at" in done.stderr) == (1, True), done.stderr


def test_only_a_commands_folder_is_filled_in() -> None:
    assert run.Wanted(["{folder}"]).filled(None) == ["{folder}"], "a text of the user's"
    assert run.Wanted(["--from", "{folder}"]).filled("/models/x") == ["--from", "/models/x"]
