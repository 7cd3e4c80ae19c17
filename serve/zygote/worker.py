"""What a fork of the zygote does to be a stock worker in everything that can be observed, and then runs TorchServe's module."""

import ctypes
import gc
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import setproctitle

from serve.zygote.fitness import worker_path
from serve.zygote.protocol import Start

PR_SET_PDEATHSIG = 1
# Forgotten in the fork, where `serve` may be a model's own. By name: to search sys.modules writes to every name's reference
# count, and so copies their pages.
OURS = (
    "serve",
    *(
        f"serve.zygote{name}"
        for name in ("", ".compiled", ".fitness", ".imports", ".protocol", ".tokenizers", ".worker", ".zygote")
    ),
)
LIBC = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the zygote dies; leave at once if that was before the kernel knew."""
    if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def become(start: Start, base_path: list[str], set_by_imports: Mapping[bytes, bytes]) -> None:
    """Take over what the launcher was started with: streams, directory, environment, argv, import path; and new chance.

    base_path: sys.path of an interpreter with no PYTHONPATH and no script. set_by_imports: what packages put into the
    environment as they were imported, as they would have in a stock worker.
    """
    for stream, passed in enumerate(start.streams):
        os.dup2(passed, stream)
        os.close(passed)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir(start.directory)
    os.environb.clear()
    os.environb.update({**set_by_imports, **start.environment})
    time.tzset()
    tempfile.tempdir = None  # cached by an import, from the zygote's TMPDIR
    script = os.fsdecode(start.argv[0])
    sys.argv = [os.fsdecode(argument) for argument in start.argv]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[:] = dict.fromkeys([str(Path(script).resolve().parent), *worker_path(start), *base_path])
    setproctitle.setproctitle(" ".join(sys.orig_argv))
    setproctitle.setthreadtitle(Path(sys.executable).name)
    reseed()
    give_back_blas_threads()
    gc.enable()


def reseed() -> None:
    """New chance for every generator that a stock worker finds freshly seeded by the system."""
    random.seed()
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed()
    if "torch" in sys.modules:
        import torch

        torch.default_generator.seed()  # torch.seed() would also queue one seed for all GPUs


def give_back_blas_threads() -> None:
    """OpenBLAS was kept to one thread, since it starts its threads when it is loaded; now it may have what it would have."""
    names = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
    processors = len(os.sched_getaffinity(0))
    wanted = next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), processors)
    for set_threads in openblas("set_num_threads"):
        set_threads(min(wanted, processors))


def openblas(function: str) -> list[Callable[..., int]]:
    """A function of each OpenBLAS in this process; scipy's builds prefix the name, those with 64-bit integers suffix it."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
    found = []
    for path in sorted(mapped):
        library = ctypes.CDLL(path)
        names = [f"{prefix}openblas_{function}{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]
        found += [getattr(library, name) for name in names if hasattr(library, name)][:1]
    return found


def run(start: Start) -> None:
    """Run the script, TorchServe's worker module or another, as `__main__`; returns or raises as it does."""
    for name in OURS:
        sys.modules.pop(name, None)
    runpy.run_path(os.fsdecode(start.argv[0]), run_name="__main__")
