"""A release that certainly does not fit beside the one that serves is refused before it starts, and nothing else is."""

import json
import struct
from pathlib import Path

import pytest

from serve.agent.room import Free, Needed, NotEnoughMemory, cgroup_left, check_room, free_memory, needed
from tests.fake_node import release
from weightless.modelfile import NodeSettings

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of 3 million parameters in bfloat16 and 1 in float32, by their headers; the rest of the file is not looked at."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [3, 1000000], "data_offsets": [0, 6000000]},
        "b": {"dtype": "F32", "shape": [1000000], "data_offsets": [6000000, 10000000]},
        "c": {"dtype": "I64", "shape": [8], "data_offsets": [10000000, 10000064]},
    }
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "cpu"),
    [
        ({}, 0),  # mapped as it is
        ({"workers": 4}, 0),  # by all of them
        ({"profile": "throughput"}, 16_000_000),  # packed, so what is float32 already is copied too
        ({"profile": "throughput", "workers": 2}, 32_000_000),
        ({"dtype": "float32"}, 12_000_000),  # what is float32 already stays mapped
        ({"dtype": "bfloat16"}, 2_000_000),
        ({"dtype": "float16"}, 8_000_000),
        ({"profile": "throughput", "device_map": "auto"}, 0),
    ],
)
def test_on_a_cpu_only_what_is_copied_counts(folder: Path, settings: dict[str, object], cpu: int) -> None:
    assert needed(folder, NodeSettings.model_validate(settings), gpu=False).cpu == cpu


def test_on_a_gpu_every_worker_has_a_copy(folder: Path) -> None:
    need = needed(folder, NodeSettings(workers=2), gpu=True)
    assert (need.cpu, need.gpu_each, need.workers) == (0, 8_000_064, 2)
    assert needed(folder, NodeSettings(dtype="float32"), gpu=True).gpu_each == 16_000_064
    assert needed(folder, NodeSettings(profile="throughput"), gpu=True).gpu_each == 8_000_064


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 4, b"\xff" * 100, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"]
)
def test_weights_that_cannot_be_read_are_refused_by_who_loads_them(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert needed(tmp_path, NodeSettings(profile="throughput"), gpu=False) == Needed()


def test_what_does_not_fit_says_how_much_and_what_to_do() -> None:
    v2 = release("v2")
    check_room(v2, Needed(cpu=100 * MIB), Free(100 * MIB))
    with pytest.raises(NotEnoughMemory) as caught:
        check_room(v2, Needed(cpu=101 * MIB, why="a private copy of the weights in float32"), Free(100 * MIB))
    assert str(caught.value) == (
        "release v2 of m: required 101 MiB of memory beside the release that serves (a private copy of the weights in float32), "
        "found 100 MiB free; set rollout: recreate under node in config/models/m.yaml, which takes the old one away first, "
        "or free some"
    )


@pytest.mark.parametrize(
    ("need", "gpus", "fits"),
    [
        (Needed(gpu_each=10, workers=2), (10, 10), True),
        (Needed(gpu_each=10, workers=2), (15, 5), True),  # TorchServe may place both on the first, but then it says so
        (Needed(gpu_each=10, workers=1), (9, 9), False),
        (Needed(gpu_each=10, workers=3), (14, 14), False),
        (Needed(gpu_each=10, workers=3), (), True),  # NVML does not say
    ],
)
def test_gpu_memory_is_compared_where_it_is_known(need: Needed, gpus: tuple[int, ...], fits: bool) -> None:
    if fits:
        check_room(release("v2"), need, Free(0, gpus))
    else:
        with pytest.raises(NotEnoughMemory, match="GPU memory"):
            check_room(release("v2"), need, Free(0, gpus))


def test_limits_of_cgroups_count_and_their_page_cache_does_not(tmp_path: Path) -> None:
    inner = tmp_path / "docker" / "one"
    inner.mkdir(parents=True)
    for place, limit in ((inner, "max"), (tmp_path / "docker", "1000")):
        (place / "memory.max").write_text(limit + "\n")
        (place / "memory.current").write_text("900\n")
        (place / "memory.stat").write_text("anon 100\ninactive_file 300\nactive_file 200\n")
    assert cgroup_left("0::/docker/one\n", tmp_path) == [600]
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000\n")
    (old / "memory.usage_in_bytes").write_text("1500\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 400\ntotal_active_file 100\n")
    assert cgroup_left("5:cpu,cpuacct:/x\n4:memory:/not/seen/from/here\n", tmp_path) == [1000]
    (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_left("4:memory:/\n", tmp_path) == []


def test_this_machine_has_some() -> None:
    assert free_memory(gpu=False).cpu > 0
