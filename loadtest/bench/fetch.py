"""`python -m loadtest.bench.fetch`: the verified fetch against the clients that people use, on a MinIO of its own.

Every client downloads the same objects into the same folder, which is empty, with nothing synced before or after; the order
turns round from one sample to the next. Three workloads: two files of 1 GiB, one of 2 GiB, 3,000 small ones. Ours checks BLAKE3
of every byte, takes locks and makes links; none of the others checks anything. The programs (mc, s5cmd) are timed with their
start, which is 30 to 60 ms; the libraries, ours among them, without that of Python.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.server import BenchServer, machine, running_server, tool
from weightless.cache import NodeCache
from weightless.digests import Hasher
from weightless.errors import NotEnoughDisk
from weightless.fetch import fetch_release
from weightless.fetch.wire import Connection
from weightless.release import Content, FileEntry, Location, Release, ReleaseSettings
from weightless.settings import CacheSettings, FetchSettings
from weightless.store import Store

MIB = 1 << 20
PEERS = Path(__file__).with_name("peers.py")


@dataclass(frozen=True)
class Workload:
    """A model of the benchmark and its files' sizes."""

    name: str
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.sizes)


def workloads(mib: int) -> list[Workload]:
    """`mib`: the size of a "1 GiB" file; less than 1024 only to try the benchmark itself."""
    small = tuple((500, 2_000, 8_000, 20_000, 60_000)[number % 5] for number in range(3000 * mib // 1024))
    return [Workload("two", (mib * MIB,) * 2), Workload("one", (2 * mib * MIB,)), Workload("small", small)]


# ---- what is downloaded


class _Noise(io.RawIOBase):
    """So many bytes that no client can compress, the same for the same seed, hashed while they are read."""

    def __init__(self, size: int, seed: int) -> None:
        self._left = size
        self._block = bytearray(seed.to_bytes(8, "big") + os.urandom(MIB - 8))
        self._number = 0
        self.hasher = Hasher()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        out = bytearray()
        while self._left and (size < 0 or len(out) < size):
            self._number += 1
            self._block[8:16] = self._number.to_bytes(8, "big")
            count = min(MIB, self._left, MIB if size < 0 else size - len(out))
            out += self._block[:count]
            self._left -= count
        data = bytes(out)
        self.hasher.update(data)
        return data


def publish(server: BenchServer, workload: Workload) -> Release:
    """Upload the workload's files; the release that names them."""
    entries, versions = [], {}
    for number, size in enumerate(workload.sizes):
        path, noise = f"{number:05}.bin", _Noise(size, number)
        key = f"{workload.name}/{path}"
        written = server.client.put_object("models", key, noise, size, part_size=64 * MIB)  # type: ignore[arg-type]
        digests = noise.hasher.digests()
        entries.append(FileEntry(path=path, size=digests.size, blake3=digests.blake3, sha256=digests.sha256))
        versions[key] = str(written.version_id)
    settings = ReleaseSettings(task="text-generation")
    content = Content(
        model=workload.name, created="2026-01-01T00:00:00Z", source={}, files=tuple(entries), settings=settings
    )
    return Release.make("v1", content, Location(bucket="models", versions=versions))


# ---- who downloads it: functions that return seconds


def ours(server: BenchServer, release: Release, folder: Path, settings: FetchSettings) -> float:
    cache = NodeCache(CacheSettings.model_validate({"cache_dir": folder, "cache_max_bytes": 0}))
    began = time.perf_counter()
    with cache.use(release):
        fetch_release(Store(server.settings), cache, release, settings=settings)
    return time.perf_counter() - began


def to_nowhere(server: BenchServer, release: Release, connections: int) -> float:
    """What the server gives when nobody hashes or writes: the same requests, their bytes dropped."""
    jobs = iter(release.content.files)
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(MIB))
        with Connection(server.settings, 30) as connection:
            while True:
                with lock:
                    file = next(jobs, None)
                if file is None:
                    return
                body = connection.get("models", release.key(file), release.version(file), size=file.size)
                while body.left:
                    body.readinto(buffer)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def program(arguments: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    return time.perf_counter() - began


def library(python: Path, name: str, server: BenchServer, workload: Workload, folder: Path) -> float:
    arguments = [str(python), str(PEERS), name, server.endpoint, f"{workload.name}/", str(folder)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, env=os.environ | server.environment, text=True)
    return float(done.stdout)


def clients(
    server: BenchServer, workload: Workload, release: Release, folder: Path, peers: Path | None
) -> dict[str, Callable[[], float]]:
    """Everybody who takes part, by name. `peers`: the environment of the other libraries and s5cmd, None if there is none."""
    aws = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    source = f"models/{workload.name}"
    taking_part: dict[str, Callable[[], float]] = {
        "weightless": lambda: ours(server, release, folder, FetchSettings.load()),
        "mc mirror": lambda: program(
            [
                tool("mc"),
                "--config-dir",
                str(server.folder / "mc"),
                "mirror",
                "--quiet",
                f"bench/{source}",
                str(folder),
            ],
            {},
        ),
    }
    if peers is None:
        return taking_part
    s5cmd = [str(peers / "bin" / "s5cmd"), "--endpoint-url", server.endpoint]
    for name, options in {"s5cmd": [], "s5cmd tuned": ["--concurrency", "4", "--part-size", "64"]}.items():
        command = [*s5cmd, "cp", *options, f"s3://{source}/*", f"{folder}/"]
        taking_part[name] = lambda command=command: program(command, aws)  # type: ignore[misc]
    for name in ("minio-py", "minio-py ranges", "boto3", "obstore"):
        taking_part[name] = lambda name=name: library(  # type: ignore[misc]
            peers / "bin" / "python", name, server, workload, folder
        )
    return taking_part


# ---- measuring


def measure(server: BenchServer, workload: Workload, scratch: Path, peers: Path | None, samples: int) -> dict[str, Any]:
    """Seconds of every client, alternating: A B C, C B A, …"""
    release = publish(server, workload)
    folder = scratch / "destination"
    everybody = clients(server, workload, release, folder, peers)
    seconds: dict[str, list[float]] = {name: [] for name in (*everybody, "server limit")}
    for round_number in range(samples):
        names = list(everybody)[:: 1 if round_number % 2 == 0 else -1]
        for name in names:
            with _empty(folder):
                seconds[name].append(round(everybody[name](), 4))
        seconds["server limit"].append(round(to_nowhere(server, release, FetchSettings.load().fetch_connections), 4))
    for entry in server.client.list_objects("models", f"{workload.name}/", recursive=True, include_version=True):
        server.client.remove_object("models", str(entry.object_name), version_id=entry.version_id)
    return {"bytes": workload.size, "files": len(workload.sizes), "seconds": seconds}


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()  # nobody pays for what the one before him left to be written
    yield
    shutil.rmtree(folder)


def peak_extra_mib(server: BenchServer, release: Release, scratch: Path) -> float:
    """Anonymous memory of a process that fetches, at its highest, above what the same process has before."""
    manifest = scratch / "manifest.json"
    manifest.write_bytes(release.to_json())
    script = (
        "import sys, threading, time; from pathlib import Path\n"
        "from loadtest.bench import fetch as bench\n"
        "from weightless.settings import FetchSettings, StoreSettings\n"
        "print(bench.watched_fetch(Path(sys.argv[1]), Path(sys.argv[2])))\n"
    )
    with _empty(scratch / "destination"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(manifest), str(scratch / "destination")],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | server.environment,
            text=True,
        )
    return float(done.stdout)


def watched_fetch(manifest: Path, folder: Path) -> float:
    """In that process: MiB of anonymous memory that the fetch added at its peak, looked at every 5 ms."""
    from weightless.settings import StoreSettings

    release = Release.from_json("v1", manifest.read_bytes())
    cache = NodeCache(CacheSettings.model_validate({"cache_dir": folder}))
    idle = _anonymous()
    peak: int = idle
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with cache.use(release):
        fetch_release(Store(StoreSettings.load()), cache, release, settings=FetchSettings.load())
    over.set()
    watcher.join()
    return (peak - idle) / MIB


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: required a line RssAnon, found none")


def ratios(measured: dict[str, Any]) -> dict[str, float]:
    """Throughput over the best other client's, and over the server's limit: the worst of the workloads."""

    def median(workload: str, name: str) -> float:
        return float(statistics.median(measured[workload]["seconds"][name]))

    found = {}
    against_best = {
        workload: min(median(workload, name) for name in of["seconds"] if name not in ("weightless", "server limit"))
        / median(workload, "weightless")
        for workload, of in measured.items()
    }
    found["fetch_vs_best_peer"] = min(against_best.values())
    found |= {f"fetch_vs_best_peer_{workload}": value for workload, value in against_best.items()}
    against_limit = {
        workload: median(workload, "server limit") / median(workload, "weightless") for workload in measured
    }
    found["fetch_vs_server_limit"] = min(against_limit.values())
    found |= {f"fetch_vs_server_limit_{workload}": value for workload, value in against_limit.items()}
    return {name: round(value, 3) for name, value in found.items()}


def run(scratch: Path, peers: Path | None, *, mib: int = 1024, samples: int = 5) -> dict[str, Any]:
    """The whole benchmark: `ratios`, every sample, the machine and the settings."""
    required, free = 7 * mib * MIB, shutil.disk_usage(scratch).free
    if free < required:
        raise NotEnoughDisk(f"{scratch}: required {required >> 20} MiB, found {free >> 20} MiB free; use --scratch")
    with running_server(scratch) as server:
        every = workloads(mib)
        measured = {workload.name: measure(server, workload, scratch, peers, samples) for workload in every}
        peak = peak_extra_mib(server, publish(server, every[0]), scratch)
    return {
        "ratios": ratios(measured) | {"fetch_peak_extra_mib": round(peak, 1)},
        "fetch": measured,
        "machine": machine(scratch),
        "settings": FetchSettings.load().model_dump(),
        "page_cache": "objects warm on the server's side, destination empty, nothing synced",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="the verified fetch against other clients")
    parser.add_argument("--out", type=Path, default=Path("build/bench/fetch.json"))
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure on; 7 GiB are needed"
    )
    parser.add_argument("--peers", type=Path, default=None, help="an environment with requirements/bench.txt")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="size of a 1 GiB file; smaller only to try the benchmark")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        found = run(Path(scratch), options.peers, mib=options.mib, samples=options.samples)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    for workload, of in found["fetch"].items():
        for name, seconds in sorted(of["seconds"].items(), key=lambda pair: statistics.median(pair[1])):
            middle = statistics.median(seconds)
            print(f"{workload:6} {name:16} {middle:7.2f} s {of['bytes'] / middle / MIB:7.0f} MiB/s")
    print(json.dumps(found["ratios"], indent=1))


if __name__ == "__main__":
    main()
