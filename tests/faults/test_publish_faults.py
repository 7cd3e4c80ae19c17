"""Whatever happens to a seeding, a release is whole or does not exist, and the alias names a whole one."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fetching import entry_of
from tests.hub import LocalHub, repository, running_hub
from tests.seeding import contents, copy, held
from tests.services import ROOT, MinioServer, running_minio, tool, wait_for
from weightless.store import Store

MODEL = "falcon-tiny"


def start(server: MinioServer, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """`python -m seeding seed …` as a process of its own, in a group of its own."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "minio-init")))
    told = server.environment | {"PYTHONPATH": path, "MC": tool("mc"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "seeding", "seed", *arguments, "--json"],
        env=os.environ | told | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # tests in the background ignore it, and so would this
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, object], str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, json.loads(out or "{}"), err


def all_whole(store: Store, wanted: Sequence[dict[str, bytes]]) -> None:
    """Every release is exactly one of the folders, and the alias names one of them."""
    for name in store.releases(MODEL):
        release = store.release(MODEL, name)
        bodies = held(store, release)
        assert bodies in wanted
        for file in release.content.files:
            assert file == entry_of(file.path, bodies[file.path])
    alias = store.alias(MODEL)
    if alias is not None:
        assert store.serving(MODEL).name in store.releases(MODEL)


def big(samples: Path, out: Path) -> Path:
    """falcon-tiny with enough beside its weights that a seeding takes a while in each of its steps."""
    folder = copy(samples / MODEL, out)
    for number in range(4):
        (folder / f"extra-{number}.json").write_bytes(random.Random(number).randbytes(10_000_000))
    (folder / "extra-large.json").write_bytes(random.Random(9).randbytes(40_000_000))
    return folder


def uploading(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of the mc that upload for a seeding."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"cp\0--recursive" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill_at_many_points(server: MinioServer, store: Store, folder: Path, points: int) -> None:
    """Spread over the time from the first upload to the end: before it there is only reading."""
    wanted = [contents(folder)]
    temp = folder.parent / "temp"
    temp.mkdir()

    def begin() -> subprocess.Popen[str]:
        return start(server, MODEL, "--from", str(folder), TMPDIR=str(temp))

    process = begin()
    wait_for(lambda: uploading(process), "mc to upload", interval=0.01)
    begun = time.monotonic()
    status, _, err = ended(process)
    assert status == 0, err
    took = time.monotonic() - begun
    unfinished = 0
    for point in range(points):
        server.clean()
        process = begin()
        wait_for(lambda: uploading(process), "mc to upload", interval=0.01)  # noqa: B023 - waited for here
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(took * point / points)
        with contextlib.suppress(ProcessLookupError):  # it was faster this time
            os.killpg(process.pid, signal.SIGKILL)  # mc too, as when the machine loses power
        process.communicate()
        unfinished += process.returncode != 0
        all_whole(store, wanted)
        status, state, err = ended(begin())
        assert status == 0, err
        assert list(temp.iterdir()) == [], "the store's keys are left behind"
        assert state["serving"] == state["release"] == "v1", "the next seeding finishes what this one began"
        all_whole(store, wanted)
    assert unfinished >= points // 2, "too few were killed before their end to show anything"


def test_a_seeding_killed_at_any_point_leaves_no_incomplete_release(
    minio_server: MinioServer, store: Store, samples: Path, tmp_path: Path
) -> None:
    kill_at_many_points(minio_server, store, big(samples, tmp_path / "folder"), points=4)


@pytest.mark.long
@pytest.mark.timeout(1800)  # each point waits for a share of a whole seeding, then reads back all that it left
def test_a_seeding_killed_at_fifty_points(
    minio_server: MinioServer, store: Store, samples: Path, tmp_path: Path
) -> None:
    kill_at_many_points(minio_server, store, big(samples, tmp_path / "folder"), points=50)


def test_two_people_seeding_the_same_model_at_once(minio_server: MinioServer, store: Store, samples: Path) -> None:
    folders = [samples / "falcon-tiny", samples / "falcon-tiny-v2"]
    for _ in range(2):
        minio_server.clean()
        processes = [start(minio_server, MODEL, "--from", str(folder)) for folder in folders]
        states = []
        for process in processes:
            status, state, err = ended(process)
            assert status == 0, err
            states.append(state)
        assert {state["release"] for state in states} == {"v1", "v2"}
        all_whole(store, [contents(folder) for folder in folders])
        for folder, state in zip(folders, states, strict=True):
            assert held(store, store.release(MODEL, str(state["release"]))) == contents(folder)


def test_a_store_that_dies_under_an_upload_is_said_and_the_next_seeding_goes_on(samples: Path, tmp_path: Path) -> None:
    folder = big(samples, tmp_path / "folder")
    with running_minio(tmp_path / "minio") as server:
        server.clean()
        process = start(server, MODEL, "--from", str(folder))
        objects = tmp_path / "minio" / "data" / "models" / MODEL
        wait_for(lambda: objects.exists() and any(objects.iterdir()), "the first object")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        server.process = None
        status, state, err = ended(process)
        assert status == 1
        assert state["error"]["type"] in ("StoreUnavailable", "FetchFailed"), state  # type: ignore[index]
        assert "Traceback" not in err
        server.start()
        store = server.store()
        assert store.alias(MODEL) is None
        status, state, err = ended(start(server, MODEL, "--from", str(folder)))
        assert status == 0, err
        all_whole(store, [contents(folder)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_seeding_ends_its_uploads_too(
    minio_server: MinioServer, store: Store, samples: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Only the seeding gets the signal, as from `docker stop`: mc must not go on behind its back."""
    folder = big(samples, tmp_path / "folder")
    process = start(minio_server, MODEL, "--from", str(folder))

    programs = wait_for(lambda: uploading(process), "mc to upload", interval=0.01)
    process.send_signal(number)
    status, _, err = ended(process)
    assert status == 130, err
    assert "nothing half-made was published" in err
    assert not [pid for pid in programs if Path(f"/proc/{pid}").exists()]
    all_whole(store, [contents(folder)])


def test_a_hub_that_breaks_off_leaves_no_release_and_the_download_for_the_next_try(
    minio_server: MinioServer, store: Store, samples: Path, tmp_path: Path
) -> None:
    folder = repository(samples / MODEL, tmp_path / "repo")
    told = {"DOWNLOAD_DIR": str(tmp_path / "downloads"), "MODELS_CONFIG_DIR": str(tmp_path)}
    with running_hub(LocalHub({"maker/falcon-tiny": folder}, cut_after=1000)) as hub:
        told["HF_ENDPOINT"] = hub.endpoint
        status, state, err = ended(start(minio_server, MODEL, "--hf", "maker/falcon-tiny", **told))
        assert status == 1
        assert state["error"]["type"] == "FetchFailed"  # type: ignore[index]
        assert "it goes on where it was" in err
        assert store.releases(MODEL) == []
        hub.cut_after = None
        hub.sent.clear()
        status, state, err = ended(start(minio_server, MODEL, "--hf", "maker/falcon-tiny", **told))
        assert status == 0, err
        assert state["source"] == {"huggingface": "maker/falcon-tiny", "revision": hub.commit("maker/falcon-tiny")}
        assert held(store, store.serving(MODEL)) == contents(samples / MODEL)
        assert not list((tmp_path / "downloads").glob("*/*")), "the download is removed once it is published"
        assert "config.json" not in hub.sent, "what had come before was not fetched again"
