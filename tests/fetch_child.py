"""Fetches one release, for tests that need it in a process of its own: `python -m tests.fetch_child m-v1.json [USER GROUP]`,
settings from the environment. It tells what it does in lines of JSON."""

import json
import os
import sys
from pathlib import Path

from weightless.cache import NodeCache
from weightless.errors import WeightlessError
from weightless.fetch import Progress, fetch_release
from weightless.release import Release
from weightless.settings import CacheSettings, FetchSettings, StoreSettings
from weightless.store import Store


def main(manifest: Path) -> None:
    release = Release.from_json(manifest.stem.rsplit("-", 1)[1], manifest.read_bytes())
    try:
        cache = NodeCache(CacheSettings.load())
        with cache.use(release):
            result = fetch_release(
                Store(StoreSettings.load()), cache, release, settings=FetchSettings.load(), progress=say_progress
            )
    except WeightlessError as error:
        say({"error": type(error).__name__, "message": str(error)})
    else:
        say({"result": result._asdict() | {"folder": str(result.folder)}})


def say_progress(progress: Progress) -> None:
    say({"done": progress.done, "total": progress.total})


def say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def become(user: int, group: int) -> None:
    """Go on as another user, with a umask that shuts everybody else out. Late, because the interpreter may lie where only root
    can read it; so what is imported by the first name that is resolved, and by the first fetch, must be there already."""
    import encodings.idna  # noqa: F401

    import weightless.fetch.transfer  # noqa: F401

    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    os.umask(0o077)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        become(int(sys.argv[2]), int(sys.argv[3]))
    main(Path(sys.argv[1]))
