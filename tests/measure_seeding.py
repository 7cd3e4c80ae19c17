"""How fast seeding is, beside `mc mirror` alone: `python -m tests.measure_seeding FOLDER [--hub] [--rounds 3]`.

Alternates the two into an empty bucket of a MinIO of its own, so that what else the machine does hits both. With --hub
the folder is also seeded once through a local hub, which needs room for the folder twice more. Prints one JSON object;
memory is the peak of the seeding process itself and of the largest program that it started.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seeding.mc import ALIAS, configured_mc

from tests.hub import LocalHub, running_hub
from tests.services import ROOT, MinioServer, running_minio, tool


def mirror(server: MinioServer, folder: Path) -> float:
    """Seconds that mc needs for the folder, with no check of anything."""
    with configured_mc(server.settings, tool("mc")) as mc:
        begun = time.monotonic()
        subprocess.run(mc.command("mirror", str(folder), f"{ALIAS}/models/measured"), check=True, capture_output=True)
        return time.monotonic() - begun


def seed(server: MinioServer, *arguments: str, **told: str) -> dict[str, float]:
    """Seconds and peak memory in MiB of one seeding as a process of its own."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "minio-init")))
    environment = os.environ | server.environment | {"PYTHONPATH": path, "MC": tool("mc")} | told
    begun = time.monotonic()
    program = [sys.executable, "-c", _RUN, "seed", "measured", *arguments, "--json"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    took = time.monotonic() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    found = re.search(r"memory (\d+) (\d+)", done.stderr)
    assert found is not None
    state = json.loads(done.stdout)
    return {
        "seconds": took,
        "bytes": state["bytes"],
        "uploaded": state["uploaded"],
        "peak_mib": int(found[1]) / 1024,
        "mc_peak_mib": int(found[2]) / 1024,
    }


# `python -m seeding`, that says at its end how much memory it and its largest child had.
_RUN = """
import resource, runpy, sys
try:
    runpy.run_module("seeding", run_name="__main__", alter_sys=True)
finally:
    print("memory", *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
          file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hub", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    result: dict[str, object] = {"bytes": size, "mirror_s": [], "seed_s": []}
    with (
        tempfile.TemporaryDirectory(prefix="measure-", dir=folder.parent) as scratch,
        running_minio(Path(scratch) / "minio") as server,
    ):
        mirrors, seeds = [], []
        for number in range(chosen.rounds):
            for step in ("mirror", "seed") if number % 2 == 0 else ("seed", "mirror"):
                _empty(server)
                if step == "mirror":
                    mirrors.append(mirror(server, folder))
                else:
                    seeds.append(seed(server, "--from", str(folder)))
        seconds = [one["seconds"] for one in seeds]
        result |= {
            "mirror_s": mirrors,
            "seed_s": seconds,
            "unchanged": seed(server, "--from", str(folder)) if seeds else None,
        }
        if seeds:
            result |= {"rate_vs_mirror": statistics.median(mirrors) / statistics.median(seconds), "seed": seeds[-1]}
        if chosen.hub:
            _empty(server)
            with running_hub(LocalHub({"maker/measured": folder})) as hub:
                for entry in hub.entries("maker/measured"):
                    entry.blob  # noqa: B018 - a hub knows the digests of its files before anybody asks
                told = {"HF_ENDPOINT": hub.endpoint, "DOWNLOAD_DIR": str(Path(scratch) / "downloads")}
                result["hub"] = seed(server, "--hf", "maker/measured", **told)
    result["measuring_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result, indent=1))


def _empty(server: MinioServer) -> None:
    """A bucket with nothing in it, and nothing left to be written by the kernel."""
    server.stop()
    shutil.rmtree(server.folder / "data", ignore_errors=True)
    os.sync()
    server.start()
    server.clean()


if __name__ == "__main__":
    main()
