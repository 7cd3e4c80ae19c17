"""What must not be forked starts the stock way, and says why: a fork has its packages and its environment already."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import wait_for
from tests.zygotes import LAUNCHER, ZygoteProcess, first_line, running_zygote

WHO = "import os; print(os.getppid())"
IMPORTED = "import packaging, sys; print(packaging.__file__, sys.path[1:3])"


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygoteProcess]:
    with running_zygote(tmp_path_factory.mktemp("zygote"), imports=("packaging",)) as running:
        running.event("ready")
        yield running


def is_stock(done: "subprocess.CompletedProcess[bytes]", reason: str) -> bool:
    """The worker's parent is the test, because the launcher became the worker."""
    assert reason in done.stderr.decode(), done.stderr
    assert b"it starts the stock way" in done.stderr
    return int(done.stdout) == os.getpid()


def test_without_a_zygote(tmp_path: Path, zygote: ZygoteProcess) -> None:
    never = zygote.run(WHO, environment={"WEIGHTLESS_ZYGOTE_SOCKET": str(tmp_path / "none.sock")})
    assert is_stock(never, "No such file")
    unset = zygote.run(WHO, environment={"WEIGHTLESS_ZYGOTE_SOCKET": ""})
    assert int(unset.stdout) == os.getpid()
    assert unset.stderr == b""
    with running_zygote(tmp_path) as gone:
        gone.event("ready")
        gone.process.kill()
        gone.process.wait(20)
        assert is_stock(gone.run(WHO), "Connection refused")


def test_anything_but_a_worker_becomes_the_real_interpreter(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """TorchServe uses the same interpreter for pip, for a model's own venv and for its system metrics."""
    forked = len(zygote.workers())
    script = tmp_path / "metric_collector.py"
    script.write_text(
        "import sys, yaml; print(sys.executable, sys.argv[1:], sys.flags.isolated, len(yaml.__file__) > 0)"
    )
    for arguments in ([str(script), "--gpu", "0"], ["-m", "metric_collector", "--gpu", "0"]):
        done = subprocess.run(
            [LAUNCHER, *arguments],
            env=zygote.environment | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().strip() == f"{sys.executable} ['--gpu', '0'] 0 True"
        assert done.stderr == b""
    assert len(zygote.workers()) == forked


def test_the_worker_of_another_torchserve(tmp_path: Path, zygote: ZygoteProcess) -> None:
    other = tmp_path / "ts" / "model_service_worker.py"
    other.parent.mkdir()
    other.write_text(zygote.script.read_text())
    assert is_stock(zygote.run(WHO, script=other), "required the worker of the imported TorchServe")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "LD_LIBRARY_PATH", "HF_HOME", "TS_IPEX_ENABLE", "PYTHONHASHSEED"])
def test_an_environment_that_an_import_would_have_read(zygote: ZygoteProcess, name: str) -> None:
    assert is_stock(zygote.run(WHO, environment={name: "1"}), f"differs in what is read at import: {name}")


def test_packages_that_pip_installed_for_the_model_win(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """As TorchServe does it: `pip install -t <model dir>`, which is then on PYTHONPATH."""
    (tmp_path / "packaging").mkdir()
    (tmp_path / "packaging" / "__init__.py").touch()
    (tmp_path / "packaging-99.dist-info").mkdir()
    environment = {"PYTHONPATH": f"{zygote.environment['PYTHONPATH']}:{tmp_path}:"}
    done = zygote.run(IMPORTED, environment=environment, cwd=tmp_path)
    assert str(tmp_path / "packaging") in done.stdout.decode()
    assert f"brings its own packages: packaging in {tmp_path}" in done.stderr.decode()
    (tmp_path / "packaging" / "__init__.py").unlink()
    assert is_stock(zygote.run(WHO, environment=environment, cwd=tmp_path), "its own packages: packaging-99.dist-info")


@pytest.mark.parametrize("name", ["packaging.py", "packaging/__init__.py", "packaging.cpython-311-x86_64-linux-gnu.so"])
def test_a_module_in_the_archive_under_an_imported_name_wins(tmp_path: Path, zygote: ZygoteProcess, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    environment = {"PYTHONPATH": f"{zygote.environment['PYTHONPATH']}:{tmp_path}"}
    assert is_stock(zygote.run(WHO, environment=environment), f"{name.partition('/')[0]} in {tmp_path}")


def test_a_model_folder_without_packages_is_forked(tmp_path: Path, zygote: ZygoteProcess) -> None:
    for name in ("minio_handler.py", "config.json", "model.safetensors", "packaging.json", "modeling_falcon.py"):
        (tmp_path / name).touch()
    for name in ("tasks", "weightless"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "packaging").mkdir()  # a folder without __init__ does not hide a package
    environment = {"PYTHONPATH": f"{zygote.environment['PYTHONPATH']}:{tmp_path}:"}
    done = zygote.run(WHO, environment=environment, cwd=tmp_path)
    assert int(done.stdout) == zygote.process.pid, done.stderr


def test_a_zygote_with_a_second_thread_forks_nothing(tmp_path: Path) -> None:
    """A fork has one thread: a lock held by the other one would never be given back."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(999,), daemon=True).start()\n"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'stand-in'}"}
    with running_zygote(tmp_path, path) as zygote:
        assert zygote.event("ready")
        first = zygote.run(WHO)
        assert int(first.stdout) == zygote.process.pid
        zygote.warm("threaded")
        assert zygote.event("unfit")["reason"].startswith("required one thread, found 2")
        assert is_stock(zygote.run(WHO), "required one thread, found 2")
    with running_zygote(tmp_path, path, ("threaded",)) as zygote:
        assert zygote.event("failed")["reason"].startswith("required one thread, found 2")
        assert zygote.process.wait(20) == 1
        assert is_stock(zygote.run(WHO), "Connection refused")


def test_a_zygote_that_touched_cuda_forks_nothing(tmp_path: Path) -> None:
    """After cuInit no fork can use a GPU. Without a GPU here, an import stands in that marks torch's CUDA as initialised."""
    (tmp_path / "cuda_user.py").write_text("import torch\ntorch.cuda._initialized = True\n")
    (tmp_path / "asks.py").write_text("import os\nassert os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] == '1'\n")
    path = {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'stand-in'}"}
    with running_zygote(tmp_path, path, ("asks",)) as zygote:
        assert zygote.event("ready")["failed"] == []
        assert zygote.run("import os; print(os.environ.get('PYTORCH_NVML_BASED_CUDA_CHECK'))").stdout == b"None\n"
        zygote.warm("cuda_user")
        assert zygote.event("unfit")["reason"] == "CUDA is initialised in it"
        assert is_stock(zygote.run(WHO), "CUDA is initialised in it")


def test_an_import_that_fails_costs_only_itself_unless_it_is_required(tmp_path: Path) -> None:
    with running_zygote(tmp_path, imports=("no_such_package", "transformers:NoSuchModel")) as zygote:
        failed = zygote.event("ready")["failed"]
        assert [line.partition(": ")[0] for line in failed] == ["no_such_package", "transformers:NoSuchModel"]
        assert int(zygote.run(WHO).stdout) == zygote.process.pid
    zygote.script.parent.joinpath("torch_handler/base_handler.py").write_text("raise RuntimeError('broken')")
    again = ZygoteProcess.__new__(ZygoteProcess)
    again.__dict__.update(zygote.__dict__ | {"events": []})
    again.start()
    assert again.event("failed")["reason"] == "cannot import ts.torch_handler.base_handler: broken"
    assert again.process.wait(20) == 1


def make_impatient(launcher: Path) -> None:
    text, changed = re.subn(r"^HELLO_S = [\d.]+", "HELLO_S = 0.3", LAUNCHER.read_text(), flags=re.MULTILINE)
    assert changed == 1
    launcher.write_text(text)
    launcher.chmod(0o755)


def test_a_zygote_that_is_importing_is_waited_for(tmp_path: Path) -> None:
    """Else the first workers after a start of the agent, or of a new model, would all start the stock way."""
    make_impatient(tmp_path / "launcher.py")
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
    )
    with running_zygote(tmp_path, {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'stand-in'}"}) as zygote:
        zygote.event("ready")
        zygote.warm("slow")
        wait_for(Path(f"{zygote.socket}.importing").exists, "the import to have begun")
        launched = zygote.launch(WHO, launcher=tmp_path / "launcher.py")
        with pytest.raises(subprocess.TimeoutExpired):
            launched.wait(1)
        (tmp_path / "go").touch()
        assert int(launched.communicate(timeout=60)[0]) == zygote.process.pid


def test_the_end_of_a_worker_is_noticed_beside_a_stuck_zygote(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """TorchServe knows of a worker's end by its launcher's."""
    make_impatient(tmp_path / "launcher.py")
    launched = zygote.launch(
        "import os, signal; print(os.getpid(), flush=True); signal.pause()", launcher=tmp_path / "launcher.py"
    )
    worker = int(first_line(launched))
    zygote.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        assert launched.wait(20) == 137
    finally:
        zygote.process.send_signal(signal.SIGCONT)


def test_a_stuck_zygote_is_not_waited_for_and_forks_nothing_later(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """The request lies in its queue when the launcher gives up; a worker that came of it would be a second copy."""
    impatient = tmp_path / "launcher.py"
    make_impatient(impatient)
    log = tmp_path / "log"
    code = f"import os\nwith open({str(log)!r}, 'a') as log: log.write(f'{{os.getppid()}} ')\n"
    zygote.process.send_signal(signal.SIGSTOP)
    try:  # not to the end of its output: the request in the queue holds a copy of it
        launched = zygote.launch(code, launcher=impatient)
        assert launched.stderr is not None
        assert launched.stderr.readline() == (
            b"zygote: required an answer within 0.3 s, found the zygote stuck; it starts the stock way\n"
        )
        assert launched.wait(20) == 0
    finally:
        zygote.process.send_signal(signal.SIGCONT)
    assert zygote.run("print('again')").stdout == b"again\n"  # after the abandoned request, in the same queue
    wait_for(lambda: not zygote.workers(), "the abandoned worker to leave", 10)
    assert log.read_text() == f"{os.getpid()} "


def test_what_is_not_a_request_is_refused(zygote: ZygoteProcess) -> None:
    import socket

    for message in (b"x", b"3\0/\0a", b"-1\0/\0a\0A=b"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(zygote.socket))
            connection.send(message)
            assert connection.recv(10) == b""
    assert zygote.run("print('still there')").stdout == b"still there\n"
    assert zygote.socket.stat().st_mode & 0o777 == 0o600


def test_a_request_too_long_for_the_socket(zygote: ZygoteProcess) -> None:
    long = {f"LONG_{number}": "x" * 100_000 for number in range(8)}
    assert is_stock(zygote.run(WHO, environment=long), "Message too long")
