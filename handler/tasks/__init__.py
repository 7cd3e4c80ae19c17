"""Tasks: what a model can be asked. Each module in this folder is one task; a new file here is all that a new task takes.

`text_generation.py` is the task `text-generation`. It has a function `load(folder, settings, node) -> Task`, and may
have `prepare`; see `shared/contract.py`. Sub-packages hold what tasks share and are no tasks.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.shared.contract import Loader, Node, Preparer, Task


def available() -> list[str]:
    """The names of all tasks, found by their files; none of them is imported."""
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__) if not found.ispkg)


def find_task(name: str) -> Loader:
    """The function that loads a model for a task; imports what the task needs (transformers, say), which takes seconds.

    Raises:
        ValueError: there is no such task.
    """
    loader: Loader = _module(name).load
    return loader


def find_preparer(name: str) -> Preparer | None:
    """The task's function `prepare`, if it has one. Imports and raises as `find_task` does."""
    return getattr(_module(name), "prepare", None)


def _module(name: str) -> ModuleType:
    if name not in available():
        raise ValueError(f"task {name!r}: required one of {', '.join(available())}; add tasks/<name>.py for a new one")
    return importlib.import_module(f"tasks.{name.replace('-', '_')}")


def load_task(name: str, folder: Path, settings: Mapping[str, Any], node: Node) -> Task:
    """Load the model in `folder` for a task. `settings` are the release's, `node` the machine's.

    Raises:
        ValueError: no such task, or the folder or the settings are not what it needs; anything else that loading raises.
    """
    return find_task(name)(folder, settings, node)
