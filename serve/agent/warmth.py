"""What the zygote should have imported: for the tasks and the classes of the releases that this node serves.

The classes stand in a release's config.json. Those served last are known when the agent starts; a release that is fetched for the
first time makes the zygote import its classes before its worker is forked.
"""

import json
from pathlib import Path

from serve.agent.memory import Memory
from serve.zygote.imports import BY_TASK, imports_for
from weightless.cache import NodeCache


def first_imports(memory: Memory, cache: NodeCache) -> list[str]:
    """For what was served last; on a new node, what all tasks have in common."""
    wanted = [entry for task in BY_TASK for entry in imports_for(task)]
    for release in filter(None, map(memory.recall, memory.models())):
        wanted += imports_of(cache.folder(release), release.content.settings.task)
    return list(dict.fromkeys(wanted))


def imports_of(folder: Path, task: str) -> list[str]:
    """For the release in a folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
        architectures = [str(name) for name in config.get("architectures") or []]
    except (OSError, ValueError, AttributeError):
        architectures = []
    return imports_for(task, architectures)
