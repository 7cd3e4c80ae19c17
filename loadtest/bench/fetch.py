"""Experiment `fetch`: the verified fetch against the clients that people use, on a MinIO of its own.

Every client downloads the same objects into the same folder, which is empty, with nothing synced before or after; the order
turns round from one sample to the next. Three workloads: two files of 1 GiB, one of 2 GiB, 3,000 small ones. Ours checks BLAKE3
of every byte, takes locks and makes links; none of the others checks anything. The programs (mc, s5cmd) are timed with their
start, which is 30 to 60 ms; the libraries, ours among them, without that of Python. Run:ai's streamer reads into memory and
writes no file: it has a row, and no part in the ratio.
"""

import contextlib
import io
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.experiment import Bench, BenchFailed, Experiment, Ratio, Samples
from loadtest.bench.server import BenchServer, running_server, tool
from local.install import PEERS as PEERS_ENVIRONMENT
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
OURS, LIMIT, STREAMER = "weightless", "server limit", "runai to memory"
_MANY = 100  # files, beyond which those of a sample are kept until all are taken; see `_empty`


@dataclass(frozen=True)
class Workload:
    """A model of the benchmark and its files' sizes."""

    name: str
    about: str
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.sizes)


def workloads(mib: int) -> list[Workload]:
    """`mib`: the size of a "1 GiB" file; less than 1024 only to try the benchmark itself."""
    small = tuple((500, 2_000, 8_000, 20_000, 60_000)[number % 5] for number in range(3000 * mib // 1024))
    return [
        Workload("two", "two files of 1 GiB", (mib * MIB,) * 2),
        Workload("one", "one file of 2 GiB", (2 * mib * MIB,)),
        Workload("small", "3,000 small files", small),
    ]


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
    _run(arguments, os.environ | environment)
    return time.perf_counter() - began


def library(python: Path, name: str, server: BenchServer, workload: Workload, folder: Path) -> float:
    arguments = [str(python), str(PEERS), name, server.endpoint, f"{workload.name}/", str(folder)]
    env = os.environ | server.environment | {"PYTHONPATH": ""}
    if name == STREAMER:
        env["PYTHONPATH"] = sysconfig.get_path("purelib")  # ours: it has torch, which is too large to install twice
    return float(_run(arguments, env))


def _run(arguments: list[str], env: Mapping[str, str]) -> str:
    """What it printed; BenchFailed with its last words if it failed."""
    done = subprocess.run(arguments, capture_output=True, env=env, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise BenchFailed(f"{' '.join(arguments[:3])} … ended with status {done.returncode}: {said[-1]}")
    return done.stdout


def clients(
    server: BenchServer, workload: Workload, release: Release, folder: Path, peers: Path
) -> dict[str, Callable[[], float]]:
    """Everybody who takes part, by name. `peers`: the Python of the other libraries' environment, beside which s5cmd lies."""
    aws = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    source = f"models/{workload.name}"
    mirror = ["--config-dir", str(server.folder / "mc"), "mirror", "--quiet", f"bench/{source}", str(folder)]
    taking_part: dict[str, Callable[[], float]] = {
        OURS: lambda: ours(server, release, folder, FetchSettings.load()),
        "mc mirror": lambda: program([tool("mc"), *mirror], server.environment),
    }
    s5cmd = [str(peers.with_name("s5cmd")), "--endpoint-url", server.endpoint]
    for name, options in {"s5cmd": [], "s5cmd tuned": ["--concurrency", "4", "--part-size", "64"]}.items():
        command = [*s5cmd, "cp", *options, f"s3://{source}/*", f"{folder}/"]
        taking_part[name] = lambda command=command: program(command, aws)  # type: ignore[misc]
    for name in ("minio-py", "minio-py ranges", "boto3", "obstore", STREAMER):
        taking_part[name] = lambda name=name: library(peers, name, server, workload, folder)  # type: ignore[misc]
    return taking_part


# ---- measuring


def measure(bench: Bench, server: BenchServer, workload: Workload, peers: Path) -> None:
    """Samples of every client, alternating, and of the server without one."""
    release = publish(server, workload)
    folder = bench.scratch / "destination"
    everybody = clients(server, workload, release, folder, peers)
    everybody[LIMIT] = lambda: to_nowhere(server, release, FetchSettings.load().fetch_connections)
    aside = bench.scratch / "aside" if len(workload.sizes) > _MANY else None
    with _empty(folder, aside):  # whoever comes first after the upload waits for memory: 4.7 s instead of 1.8
        everybody["mc mirror"]()
    for _, name in bench.rounds(list(everybody)):
        with _empty(folder, aside):
            seconds = everybody[name]()
        bench.record(f"{name}, {workload.name}", seconds_s=seconds, rate_mib_s=workload.size / seconds / MIB)
    for entry in server.client.list_objects("models", f"{workload.name}/", recursive=True, include_version=True):
        server.client.remove_object("models", str(entry.object_name), version_id=entry.version_id)
    if aside:
        shutil.rmtree(aside)


@contextlib.contextmanager
def _empty(folder: Path, aside: Path | None = None) -> Iterator[None]:
    """An empty folder for one sample. `aside`: where to keep it afterwards, instead of deleting it.

    Where ext4 has no journal it gives out no inode that was deleted in the last minutes, and to make a file it looks at
    each of them in the block group: where the sample before had been deleted, clients took 1.4 to 1.8 s of system time more.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()  # nobody pays for what the one before him left to be written
    yield
    if aside:
        aside.mkdir(exist_ok=True)
        folder.rename(aside / secrets.token_hex(8))
    else:
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


# ---- the experiment


def _over_best_peer(samples: Samples, workload: str) -> float:
    """Our throughput over the best other client's: medians, so seconds of the fastest other over ours."""
    others = [
        arm
        for arm in samples.arms("fetch")
        if arm.endswith(f", {workload}") and not arm.startswith((OURS, LIMIT, STREAMER))
    ]
    best = min((samples.median(arm, "seconds_s") for arm in others), default=0.0)
    return best / samples.median(f"{OURS}, {workload}", "seconds_s")


def _over_limit(samples: Samples, workload: str) -> float:
    return samples.median(f"{LIMIT}, {workload}", "seconds_s") / samples.median(f"{OURS}, {workload}", "seconds_s")


def _worst(of: Callable[[Samples, str], float]) -> Callable[[Samples], float]:
    return lambda samples: min(of(samples, workload.name) for workload in workloads(1024))


def _of(of: Callable[[Samples, str], float], workload: str) -> Callable[[Samples], float]:
    return lambda samples: of(samples, workload)


def run(bench: Bench) -> None:
    """The whole experiment.

    Raises:
        NotEnoughDisk: with what is required.
        BenchFailed: the other clients are not installed.
    """
    mib = max(1, int(1024 * bench.scale))
    required, free = 7 * mib * MIB, shutil.disk_usage(bench.scratch).free
    if free < required:
        raise NotEnoughDisk(
            f"{bench.scratch}: required {required >> 20} MiB, found {free >> 20} MiB free; use --scratch"
        )
    if not PEERS_ENVIRONMENT.installed():
        raise BenchFailed(f"required the other clients in {PEERS_ENVIRONMENT.folder}; make bench installs them")
    peers = PEERS_ENVIRONMENT.folder / "bin" / "python"
    bench.fact("page cache", "objects warm on the server's side, destination empty, nothing synced")
    folder = bench.scratch / "fetch"
    folder.mkdir()
    with running_server(folder) as server:
        every = workloads(mib)
        for workload in every:
            measure(bench, server, workload, peers)
        bench.record(
            "weightless, memory", peak_extra_mib=peak_extra_mib(server, publish(server, every[0]), bench.scratch)
        )
    shutil.rmtree(folder)


EXPERIMENT = Experiment(
    "fetch",
    "the verified fetch against clients that verify nothing",
    run,
    (
        Ratio("fetch_vs_best_peer", "throughput over the best other client's, the worst of three workloads",
              _worst(_over_best_peer), at_least=1.0),
        *(Ratio(f"fetch_vs_best_peer_{w.name}", f"the same, {w.about}", _of(_over_best_peer, w.name)) for w in workloads(1024)),
        Ratio("fetch_vs_server_limit", "throughput over what the server gives to /dev/null, the worst of three",
              _worst(_over_limit), at_least=0.5),
        *(Ratio(f"fetch_vs_server_limit_{w.name}", f"the same, {w.about}", _of(_over_limit, w.name)) for w in workloads(1024)),
        Ratio("fetch_peak_extra_mib", "anonymous memory of a fetch at its peak, above idle, MiB",
              lambda samples: samples.median("weightless, memory", "peak_extra_mib"), at_most=128),
    ),
)  # fmt: skip
