"""Tasks: what a model can be asked. Each module in this folder is one task; a new file here is all that a new task takes.

`text_generation.py` is the task `text-generation`. It has a function `load(folder, settings, node) -> Task`; see
`shared/contract.py`. Sub-packages hold what tasks share and are no tasks.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.shared.contract import Loader, Node, Task


def available() -> list[str]:
    """The names of all tasks, found by their files; none of them is imported."""
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__) if not found.ispkg)


def find_task(name: str) -> Loader:
    """The function that loads a model for a task; imports what the task needs (transformers, say), which takes seconds.

    Raises:
        ValueError: there is no such task.
    """
    if name not in available():
        raise ValueError(f"task {name!r}: required one of {', '.join(available())}; add tasks/<name>.py for a new one")
    loader: Loader = importlib.import_module(f"tasks.{name.replace('-', '_')}").load
    return loader


def load_task(name: str, folder: Path, settings: Mapping[str, Any], node: Node) -> Task:
    """Load the model in `folder` for a task. `settings` are the release's, `node` the machine's.

    Raises:
        ValueError: no such task, or the folder or the settings are not what it needs; anything else that loading raises.
    """
    return find_task(name)(folder, settings, node)
