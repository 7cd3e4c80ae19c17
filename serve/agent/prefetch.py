"""Has a release fetched into the node's cache, in a process of its own (serve/fetching.py).

In the agent itself the fetch would compete with the door for the interpreter. While the zygote can fork, the process is a fork of
it and fetches at once: a new interpreter has to import first.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from serve.agent.children import bound_to_us, stop
from serve.agent.settings import ROOT
from weightless import errors
from weightless.errors import FetchFailed, WeightlessError
from weightless.release import Release

Report = Callable[[dict[str, Any]], None]
_SCRIPT = ROOT / "serve" / "fetching.py"


async def prefetch(
    interpreter: str, environment: Mapping[str, str], release: Release, report: Report
) -> dict[str, Any]:
    """Fetch in a child. `report` gets `{"done", "total", "rate", "eta_s"}` (bytes, bytes/s, s); returns the child's result.

    Raises:
        WeightlessError: what the child raised, as the class that it raised.
    """
    process = await asyncio.create_subprocess_exec(
        *bound_to_us([interpreter, str(_SCRIPT)]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        request = {"name": release.name, "version": release.manifest_version, "manifest": release.to_json().decode()}
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        async for line in process.stdout:
            said = json.loads(line)
            if "progress" in said:
                report(said["progress"])
            elif "error" in said:
                raise _as_raised(said["error"])
            else:
                return dict(said["result"])
        raise FetchFailed(
            f"release {release.name} of {release.model}: the fetch ended with status {await process.wait()}"
        )
    finally:
        await stop(process, grace_s=5)


def _as_raised(error: dict[str, str]) -> WeightlessError:
    kind = getattr(errors, error["type"], WeightlessError)
    if not (isinstance(kind, type) and issubclass(kind, WeightlessError)):
        kind = WeightlessError
    return kind(error["message"])
