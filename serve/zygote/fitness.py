"""Which starts must be left to a new interpreter, and whether this process may be forked from at all.

A fork has already imported its packages, in the environment that the zygote was started with. Where a stock worker would have
imported something else, or imported it differently, the answer is a sentence that says so, and the worker starts the stock way.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.zygote.protocol import Start

# Read once, by the dynamic loader, the interpreter or a library while it is imported; too late to change in a fork.
READ_AT_START = (
    b"ATEN_", b"GLIBC_TUNABLES", b"GOMP_", b"GOTO_", b"HF_", b"KMP_", b"LANG", b"LC_", b"LD_", b"MALLOC_", b"MKL_", b"OMP_",
    b"OPENBLAS_", b"PYTHON", b"PYTORCH_", b"TORCH", b"TRANSFORMERS_", b"TS_IPEX_ENABLE", b"USE_",
)  # fmt: skip
APPLIED_IN_THE_FORK = (b"PYTHONPATH",)
SAME_AS_UNSET = {b"TS_IPEX_ENABLE": b"false"}  # TorchServe sets it so for its workers


def unfit_to_fork() -> str | None:
    """Why no process may be forked from this one now, or None: a fork keeps one thread of many, and no CUDA context."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) != 1:
        return f"required one thread, found {len(threads)}: {', '.join(sorted(threads))}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised in it"
    return None


def unfit_after_imports() -> str | None:
    """As above, and whether an import loaded the CUDA driver: after cuInit no fork can use it, with a context or without."""
    return unfit_to_fork() or (
        "an import loaded the CUDA driver" if "/libcuda.so" in Path("/proc/self/maps").read_text() else None
    )


def imported_names() -> frozenset[str]:
    """The top-level modules that a fork has already. Taken once after the imports: to look at a name is to write to its
    reference count, and the names lie on some thousand pages that are shared with the workers."""
    return frozenset({name.partition(".")[0] for name in sys.modules} - {"__main__", "serve"})


def why_stock(
    start: Start,
    scripts: Sequence[Path],
    environment: Mapping[bytes, bytes],
    own_path: list[str],
    imported: frozenset[str],
) -> str | None:
    """Why this start needs an interpreter of its own, or None.

    scripts: what may be run, first the worker module of the TorchServe that is imported here. environment: what this process
    was started with.
    own_path: the entries of sys.path from which it imported the modules in `imported`.
    """
    asked = Path(os.fsdecode(start.argv[0])) if start.argv else Path()
    if not (asked.is_file() and any(script.is_file() and asked.samefile(script) for script in scripts)):
        return f"required the worker of the imported TorchServe, {scripts[0]}, found {asked}"
    changed = sorted(
        os.fsdecode(name)
        for name in environment.keys() | start.environment.keys()
        if name.startswith(READ_AT_START)
        and name not in APPLIED_IN_THE_FORK
        and len({found.get(name, SAME_AS_UNSET.get(name)) for found in (environment, start.environment)}) > 1
    )
    if changed:
        return f"its environment differs in what is read at import: {', '.join(changed)}"
    for entry in worker_path(start):
        if entry not in own_path and (found := own_packages(Path(entry), imported)):
            return f"the model brings its own packages: {found} in {entry}"
    return None


def worker_path(start: Start) -> list[str]:
    return pythonpath(os.fsdecode(start.environment.get(b"PYTHONPATH", b"")), os.fsdecode(start.directory))


def pythonpath(value: str, directory: str) -> list[str]:
    """PYTHONPATH as an interpreter reads it: absolute, and an empty entry (TorchServe leaves one) is the working directory."""
    return [os.path.normpath(Path(directory, entry)) for entry in value.split(os.pathsep)] if value else []


def own_packages(folder: Path, imported: frozenset[str]) -> str | None:
    """A package that pip installed into this folder, or a module in it that would have been imported instead of ours."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return None
    for entry in sorted(entries, key=lambda found: found.name):
        name, _, rest = entry.name.partition(".")
        if entry.name.endswith(".dist-info"):
            return entry.name
        is_module = rest == "py" or rest.endswith("so") or Path(entry.path, "__init__.py").is_file()
        if name in imported and is_module:
            return entry.name
    return None
