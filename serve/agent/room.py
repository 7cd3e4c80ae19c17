"""Whether a release fits into memory beside the one that serves, asked before its workers start.

Only what certainly does not fit is refused; a start that would be slow is not. What counts on a CPU is private memory, which the
kernel cannot take back:

- A checkpoint loaded in its own dtype is mapped. Its pages are the page cache's, one copy for all workers, and go back to the
  kernel when something else needs them: however large it is, it needs nothing here.
- One loaded in another dtype than the file's (`dtype`) is a private copy of every converted tensor for each worker, 4 bytes a
  parameter in float32 and 2 in the others. With profile `throughput` all of it is one, since its layers are packed.

On a GPU every worker has a copy of its own in GPU memory, in the node's dtype or in 2 bytes a parameter. With a `device_map`
the rest may go to the CPU or to the disk, so nothing is refused. What batches and caches take on top is not counted, nor is swap.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from weightless.errors import WeightlessError
from weightless.modelfile import NodeSettings
from weightless.release import Release

_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LARGEST_HEADER = 100_000_000  # safetensors' own bound
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63
_CGROUPS = Path("/sys/fs/cgroup")


class NotEnoughMemory(WeightlessError):
    """A release does not fit into memory beside the one that serves."""


@dataclass(frozen=True)
class Free:
    """Bytes that may still be used: of the machine's memory, within our limits, and of each GPU that models run on."""

    cpu: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Needed:
    """Bytes of private memory that all workers of a release take together, on the CPU or on GPUs; `why` they do."""

    cpu: int = 0
    gpu_each: int = 0
    workers: int = 1
    why: str = ""


def check_room(release: Release, need: Needed, free: Free) -> None:
    """Raise NotEnoughMemory unless it fits, or may fit."""
    on_gpus = need.gpu_each * need.workers
    short_cpu = need.cpu > free.cpu
    short_gpu = bool(free.gpus) and (on_gpus > sum(free.gpus) or need.gpu_each > max(free.gpus))
    if not short_cpu and not short_gpu:
        return
    required, found = (need.cpu, free.cpu) if short_cpu else (on_gpus, sum(free.gpus))
    where = "memory" if short_cpu else "GPU memory"
    raise NotEnoughMemory(
        f"release {release.name} of {release.model}: required {_mib(required)} of {where} beside the release that serves "
        f"({need.why}), found {_mib(found)} free; set rollout: recreate under node in config/models/{release.model}.yaml, which "
        "takes the old one away first, or free some"
    )


def needed(folder: Path, node: NodeSettings, gpu: bool) -> Needed:
    """What the workers of the release in `folder` will take, from the headers of its weights. Nothing where they cannot be read:
    a broken file is refused by who loads it, and with a better reason."""
    if node.device_map is not None:
        return Needed()
    try:
        tensors = [tensor for path in sorted(folder.rglob("*.safetensors")) for tensor in _tensors(path)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return Needed()
    dtype = node.dtype if node.dtype != "auto" else "float32" if node.profile == "throughput" and not gpu else None
    wanted = _DTYPES[dtype] if dtype is not None else None
    each = f"for each of {node.workers} workers" if node.workers > 1 else "of the weights"
    if gpu:
        size = sum(count * (_FLOATS[wanted or "BF16"] if kind in _FLOATS else 1) for kind, count in tensors)
        return Needed(gpu_each=size, workers=node.workers, why=f"a copy {each} in {dtype or 'bfloat16'}")
    if wanted is None:
        return Needed()
    packed = node.profile == "throughput"
    size = sum(count * _FLOATS[wanted] for kind, count in tensors if kind in _FLOATS and (packed or kind != wanted))
    return Needed(cpu=size * node.workers, workers=node.workers, why=f"a private copy {each} in {dtype}")


def free_memory(gpu: bool) -> Free:
    """What is free now: MemAvailable, or less where a cgroup bounds us; with `gpu`, NVML's figure of each GPU."""
    left = min([psutil.virtual_memory().available, *cgroup_left(Path("/proc/self/cgroup").read_text(), _CGROUPS)])
    return Free(left, _gpus() if gpu else ())


def cgroup_left(membership: str, root: Path) -> list[int]:
    """Bytes left under each limit that is over us; `membership`: /proc/self/cgroup. The page cache does not count, it can go."""
    left = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        place = top / path.strip("/")
        for folder in [place, *place.parents]:
            if (folder / limit).is_file() and (found := _left(folder, limit, usage)) is not None:
                left.append(found)
            if folder == top:
                break
    return left


def _left(folder: Path, limit: str, usage: str) -> int | None:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) > _UNLIMITED:
            return None
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        prefix = "total_" if "total_inactive_file" in stat else ""  # v1 counts children apart
        cached = int(stat.get(f"{prefix}inactive_file", 0)) + int(stat.get(f"{prefix}active_file", 0))
        return int(most) - int((folder / usage).read_text()) + cached
    except (OSError, ValueError):
        return None  # what cannot be read refuses nothing


def _gpus() -> tuple[int, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return tuple(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ()


def _tensors(path: Path) -> list[tuple[str, int]]:
    """dtype and number of elements of each tensor in a file of weights."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"{path.name}: a header of {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    found = []
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            kind = str(tensor["dtype"])
            found.append((kind, (end - begin) // _FLOATS.get(kind, 1)))
    return found


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
