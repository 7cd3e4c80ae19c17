"""A forked worker is a stock worker in everything that a handler can see: otherwise a model behaves one way with the zygote
and another without it, and nobody finds out why."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.zygotes import LAUNCHER, ZygoteProcess, first_line, running_zygote

STARTS = 20
SAY = """
import atexit, ctypes, gc, json, locale, logging, os, random, resource, signal, sys, tempfile, threading, time, warnings
import numpy, torch
def openblas():
    paths = {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}
    return [ctypes.CDLL(path).scipy_openblas_get_num_threads64_() for path in sorted(paths) if "numpy" in path]
def links():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try: found[fd] = os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
        except OSError: pass
    return found
def stream(s):
    return [s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno(), s.isatty()]
numpy.ones((300, 300)) @ numpy.ones((300, 300))
files = links()
facts = dict(
    files=files, argv=sys.argv, orig_argv=sys.orig_argv, executable=sys.executable, path=sys.path, flags=str(sys.flags),
    main=[__name__, __file__, sys.modules["__main__"].__dict__ is globals()], cwd=os.getcwd(), environment=dict(os.environ),
    c_environment=os.popen("echo $MARK").read(), umask=os.umask(0),
    signals={int(n): str(signal.getsignal(n)) for n in signal.valid_signals()},
    mask=[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    streams=[stream(sys.stdin), stream(sys.stdout), stream(sys.stderr)], buffer=str(type(sys.stdout.buffer)),
    torch_threads=torch.get_num_threads(), torch_interop=torch.get_num_interop_threads(), openblas=openblas(),
    parallel=torch.__config__.parallel_info(), threads=len(os.listdir("/proc/self/task")), python_threads=threading.active_count(),
    gc=[gc.isenabled(), gc.get_threshold()], root_handlers=len(logging.root.handlers), level=logging.root.level,
    title=open("/proc/self/cmdline").read().replace(chr(0), " ").strip(), comm=open("/proc/self/comm").read(),
    temporary=tempfile.gettempdir(), zone=time.tzname, locale=locale.setlocale(locale.LC_ALL),
    limits=[resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK)],
    affinity=sorted(os.sched_getaffinity(0)), group=os.getpgid(0), session=os.getsid(0),
    ours=sorted(n for n in sys.modules if n.split(".")[0] in ("serve", "weightless", "tasks", "handler", "minio_handler")),
    cuda=[torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()],
)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygoteProcess]:
    # A test run in the background ignores SIGINT, and its children do then: nothing of that could be compared.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with running_zygote(tmp_path_factory.mktemp("zygote")) as running:
        running.event("ready")
        yield running
    signal.signal(signal.SIGINT, before)


def both(zygote: ZygoteProcess, code: str, *arguments: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the code prints, as JSON, in a forked and in a stock worker."""
    before = zygote.event("ready")["pid"], len([event for event in zygote.events if event["event"] == "forked"])
    forked, stock = (zygote.run(code, *arguments, stock=stock, **options) for stock in (False, True))
    assert forked.returncode == stock.returncode == 0, (forked.stderr, stock.stderr)
    zygote.event("forked", skip=before[1])  # or it would be one stock worker compared with another
    return json.loads(forked.stdout), json.loads(stock.stdout)


@pytest.mark.parametrize("threads", [None, "1", "2"])
def test_it_sees_what_a_stock_worker_sees(tmp_path: Path, zygote: ZygoteProcess, threads: str | None) -> None:
    environment = {"MARK": "a mark", "TMPDIR": str(tmp_path), "TZ": "Asia/Tokyo", "ODD": "a=b\nc \udce4"}
    if threads is None:
        forked, stock = both(zygote, SAY, "--one", "two words", cwd=tmp_path, environment=environment)
    else:
        with running_zygote(tmp_path, {"OMP_NUM_THREADS": threads}) as limited:
            limited.event("ready")
            forked, stock = both(limited, SAY, cwd=tmp_path, environment=environment)
        assert stock["torch_threads"] == int(threads)
    assert set(forked) == set(stock)
    assert {name: forked[name] for name in forked} == {name: stock[name] for name in forked}


def test_its_import_path_is_read_as_torchserve_writes_it(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """TorchServe ends PYTHONPATH with a colon, which is the working directory; duplicates and relative entries count too."""
    model = tmp_path / "model"
    model.mkdir()
    pythonpath = f"{zygote.environment['PYTHONPATH']}:{model}:sub/folder:{model}::/does/not/exist/"
    code = "import json, sys; print(json.dumps({'path': sys.path}))"
    forked, stock = both(zygote, code, cwd=tmp_path, environment={"PYTHONPATH": pythonpath})
    assert forked == stock
    assert str(model) in forked["path"]


def test_two_workers_and_the_zygote_draw_different_numbers(zygote: ZygoteProcess) -> None:
    """Sampling on two workers must give two answers."""
    code = "import numpy, random, torch; print(random.random(), numpy.random.rand(), float(torch.rand(1)), torch.randperm(99)[0])"
    draws = [zygote.run(code).stdout.split() for _ in range(3)]
    for generator in range(3):
        assert len({draw[generator] for draw in draws}) == 3, draws


def test_an_edited_handler_is_used_at_the_next_start(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """`weightless`, `tasks` and the handler come from the archive, whatever lies in the checkout the zygote was started from."""
    environment = {"PYTHONPATH": f"{zygote.environment['PYTHONPATH']}:{tmp_path}:"}
    code = "import minio_handler, os, tasks, weightless\nprint(minio_handler.WHICH, tasks.WHICH, weightless.WHICH, os.getppid())"
    for which in ("first", "second"):
        for name in ("minio_handler", "tasks", "weightless"):
            (tmp_path / f"{name}.py").write_text(f"WHICH = {which!r}  # {'longer' * len(which)}\n")
        done = zygote.run(code, environment=environment, cwd=tmp_path)
        assert done.stdout.decode().split() == [which] * 3 + [str(zygote.process.pid)], done.stderr


def test_a_module_is_compiled_once_wherever_it_lies(tmp_path: Path, zygote: ZygoteProcess) -> None:
    """Each registration unpacks its archive to a new path: to compile it there each time is a sixth of a warm start. What is
    taken from an earlier one must say where it lies now, and an edit of equal length must not be missed."""
    kept = Path(f"{zygote.socket}.code")
    code = "import inner\nprint(inner.where.__code__.co_filename, inner.where())"

    def started(name: str, word: str) -> int:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "inner.py").write_text(f"def where():\n    return {word!r}\n")
        found = zygote.run(code, environment={"PYTHONPATH": f"{zygote.environment['PYTHONPATH']}:{folder}:"})
        assert found.stdout.decode().split() == [str(folder / "inner.py"), word], found.stderr
        return len(list(kept.iterdir()))

    after_one = started("one", "first")
    after_two = started("two", "first")
    after_edit = started("three", "other")
    assert after_two == after_one
    assert after_edit == after_one + 1
    for file in kept.iterdir():
        file.write_bytes(b"cut")
    started("four", "first")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('a reason')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(255)", 255),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
        ("import ctypes; ctypes.string_at(0)", 139),
    ],
)
def test_the_launcher_leaves_with_the_exit_code_of_its_worker(zygote: ZygoteProcess, code: str, expected: int) -> None:
    """137 is how TorchServe recognises a worker that ran out of memory."""
    done = zygote.run(code)
    assert done.returncode == expected
    stock = zygote.run(code, stock=True)
    assert stock.returncode in (expected, 128 - expected)
    for text in (b"a reason", b"ZeroDivisionError"):
        assert (text in done.stderr) == (text in stock.stderr)


def test_all_output_arrives_in_order_also_what_is_printed_last(zygote: ZygoteProcess) -> None:
    code = """
import atexit, os, sys, threading, time
atexit.register(lambda: print("at exit", end=""))
atexit.register(lambda: print("error at exit", end="", file=sys.stderr))
over = threading.Event()
threading.Thread(target=lambda: (over.wait(), time.sleep(0.1), print("from a thread"))).start()
for number in range(100_000): print(number)
print("no newline ", end="")
over.set()
"""
    forked, stock = zygote.run(code), zygote.run(code, stock=True)
    assert forked.stdout == stock.stdout
    assert forked.stderr == stock.stderr == b"error at exit"
    assert forked.stdout.endswith(b"no newline from a thread\nat exit")


def test_what_an_import_printed_does_not_come_out_of_the_workers(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text("print('imported')\n")
    path = f"{tmp_path}:{tmp_path / 'stand-in'}"
    environment = {"PYTHONPATH": path}
    zygote = ZygoteProcess(tmp_path, environment, ("chatty",))
    try:
        assert zygote.process.stdout is not None
        first_line(zygote.process, lambda line: b'"ready"' in line)
        assert zygote.run("print('worker')").stdout == b"worker\n"
    finally:
        zygote.process.kill()
        zygote.process.wait(20)


def test_standard_input_is_the_launchers(zygote: ZygoteProcess) -> None:
    process = zygote.launch("import sys; print(sys.stdin.read()[::-1])", stdin=subprocess.PIPE)
    assert process.communicate(b"abc", timeout=30)[0] == b"cba\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_the_worker(zygote: ZygoteProcess, number: int) -> None:
    code = f"""
import signal, sys
signal.signal({int(number)}, lambda *_: sys.exit(7))
print("here", flush=True)
while True: signal.pause()
"""
    process = zygote.launch(code)
    first_line(process)
    process.send_signal(number)
    assert process.wait(20) == 7


def test_many_starts_at_once_all_become_workers_of_their_own(zygote: ZygoteProcess) -> None:
    started = [zygote.launch(f"import os; print({number}, os.getpid(), os.getppid())") for number in range(STARTS)]
    said = [process.communicate(timeout=90)[0].split() for process in started]
    assert [int(words[0]) for words in said] == list(range(STARTS))
    assert len({words[1] for words in said}) == STARTS
    assert {int(words[2]) for words in said} == {zygote.process.pid}
    assert all(process.returncode == 0 for process in started)


def test_a_worker_keeps_what_the_imports_put_into_the_environment(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text("import os\nos.environ['SET_BY_IMPORT'] = 'yes'\nos.environ['MARK'] = 'no'\n")
    with running_zygote(tmp_path, {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'stand-in'}"}, ("sets",)) as zygote:
        zygote.event("ready")
        done = zygote.run("print(os.environ['SET_BY_IMPORT'], os.environ['MARK'])", environment={"MARK": "launcher"})
    assert done.stdout == b"yes launcher\n"


def test_memory_is_shared_with_the_zygote(zygote: ZygoteProcess) -> None:
    """What one more worker costs before it loads a model: torch alone would be 150 MB."""
    code = """
import gc
gc.collect()
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("Private_Dirty"): print(line.split()[1])
"""
    assert int(zygote.run(code).stdout) < 30_000


def test_the_launcher_loads_nothing_that_takes_time() -> None:
    """Each import in it is paid at every start, between TorchServe's request and the fork."""
    launcher = LAUNCHER.read_text()
    assert launcher.startswith("#!/usr/bin/env -S python3 -IS\n")
    assert os.access(LAUNCHER, os.X_OK)
    code = "import sys; __name__ = 'launcher'; exec(open(sys.argv[1]).read()); print(*sorted(sys.modules))"
    bare = "import os, sys; print(*sorted(sys.modules))"
    loaded, without = (
        set(
            subprocess.run(
                [sys.executable, "-IS", "-c", text, LAUNCHER], capture_output=True, check=True
            ).stdout.split()
        )
        for text in (code, bare)
    )
    assert loaded - without <= {b"_signal", b"_socket", b"select"}
