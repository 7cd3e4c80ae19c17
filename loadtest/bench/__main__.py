"""`python -m loadtest.bench`: run experiments; results.json, a page with plots, and the ratios on the terminal.

What was measured is written after every experiment, so that a run that is broken off loses only the one it was in.
"""

import argparse
import importlib
import importlib.metadata
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.bench import results
from loadtest.bench.experiment import Bench, BenchFailed, Experiment
from loadtest.bench.server import machine
from weightless.errors import WeightlessError
from weightless.settings import FetchSettings

EXPERIMENTS = ("fetch", "coldstart", "serving", "turnaround", "growth")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "torchserve", "minio", "blake3", "aiohttp")


def main() -> int:
    """0: measured, whatever the ratios; 1: an experiment could not be carried out."""
    options = _parser().parse_args()
    named = [name for name in options.only.split(",") if name]
    try:
        experiments = _chosen(named)
    except BenchFailed as error:
        return _error(error)
    status, began = 0, _now()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else a stopped run leaves its gigabytes
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="bench-") as scratch:
        bench = Bench(Path(scratch), options.samples, options.scale)
        done: list[Experiment] = []
        try:
            for experiment in experiments:
                bench.run(experiment)
                done.append(experiment)
                _write(options.out, bench, done, began)
        except WeightlessError as error:
            status = _error(error)
        except KeyboardInterrupt:
            status = _error(BenchFailed("interrupted; what was finished before is kept"))
        finally:
            bench.close()
    if done:
        results.show(done, bench.samples)
        print(f"{options.out / 'results.json'}  {options.out / 'index.html'}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help=f"experiments, with commas: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of results.json and index.html")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure on (default: the temporary one)")
    parser.add_argument("--samples", type=int, default=5, help="samples of each arm; 3 at most of what takes over 30 s")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data; below 1 only to try the benchmark")
    return parser


def _chosen(named: Sequence[str]) -> list[Experiment]:
    """The named experiments, or all that are not long, in their usual order."""
    unknown = [name for name in named if name not in EXPERIMENTS]
    if unknown:
        raise BenchFailed(f"ONLY: required some of {', '.join(EXPERIMENTS)}, found {', '.join(unknown)}")
    every = [importlib.import_module(f"loadtest.bench.{name}").EXPERIMENT for name in named or EXPERIMENTS]
    return [experiment for experiment in every if named or not experiment.long]


def _write(folder: Path, bench: Bench, done: Sequence[Experiment], began: str) -> None:
    about: dict[str, Any] = {
        "started": began,
        "finished": _now(),
        "machine": machine(bench.scratch),
        "versions": our_version(ROOT) | {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {"samples": bench.count, "scale": bench.scale, **FetchSettings.load().model_dump()},
    }
    results.write(folder, results.document(bench, done, about), bench, done)


def our_version(checkout: Path) -> dict[str, str]:
    """The commit that was measured, with "-dirty" where files were changed since; nothing outside a git checkout."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--tags", "--dirty", "--abbrev=12"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"weightless": said}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _error(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
