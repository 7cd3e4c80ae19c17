"""Cold starts, turnaround and growth as ratios, against samples whose ratios can be told by hand; and what measures them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from seeding.samples.falcon_random import SHAPES

from loadtest.bench import coldstart, growth, turnaround
from loadtest.bench.experiment import Bench, Experiment
from loadtest.bench.measured import change, require_disk, scaled
from loadtest.bench.results import ratios
from loadtest.bench.workers import mapped
from weightless.errors import NotEnoughDisk

Taken = dict[str, list[Mapping[str, float]]]


def found(experiment: Experiment, samples: Taken) -> dict[str, float]:
    """The experiment's ratios of these samples, by key."""

    def record(bench: Bench) -> None:
        for arm, taken in samples.items():
            for figures in taken:
                bench.record(arm, **figures)

    bench = Bench(Path("/nowhere"), tell=lambda text: None)
    bench.run(Experiment(experiment.name, "", record, ()))
    return {ratio.key: value for ratio, value in ratios([experiment], bench.samples)}


def starts(**seconds: tuple[float, float]) -> Taken:
    return {name.replace("_", " "): [{"ready_s": at[0], "first_s": at[1]}] for name, at in seconds.items()}


def test_a_cold_start_is_compared_with_every_embedded_form() -> None:
    samples = starts(slim_cold=(2, 3), slim_warm=(0.5, 1.5), mar=(20, 30), tgz=(10, 12), store=(8, 9))
    samples |= {"no-archive": [{"ready_s": 5, "first_s": 6}], "mar, same workers": [{"ready_s": 16, "first_s": 17}]}
    samples |= {"no-archive, same workers": [{"ready_s": 1, "first_s": 2}]}
    samples |= {
        "slim cold, 1 Gb/s": [{"ready_s": 10, "first_s": 11}],
        "slim cold, 10 Gb/s": [{"ready_s": 3, "first_s": 4}],
    }
    assert found(coldstart.EXPERIMENT, samples) == {
        "cold_ready_vs_mar": 0.1,
        "cold_ready_vs_tgz": 0.2,
        "cold_ready_vs_store": 0.25,
        "cold_ready_vs_no_archive": 0.4,
        "cold_first_vs_mar": 0.1,
        "cold_first_vs_no_archive": 0.5,
        "cold_ready_vs_mar_same_workers": 0.125,
        "cold_ready_vs_no_archive_same_workers": 2,
        "cold_ready_1gbit_vs_mar": 0.5,
        "cold_ready_1gbit_vs_no_archive": 2,
        "cold_ready_10gbit_vs_mar": 0.15,
        "cold_ready_10gbit_vs_no_archive": 0.6,
        "warm_ready_vs_no_archive": 0.1,
        "warm_first_vs_no_archive": 0.25,
    }


def test_the_bare_transfer_is_that_of_the_fastest_copier() -> None:
    samples: Taken = starts(slim_cold=(1.5, 2))
    for name, seconds in (("mc mirror", 3), ("s5cmd", 1), ("s5cmd tuned", 2)):
        samples[f"transfer {name}"] = [{"seconds_s": seconds}]
    assert found(coldstart.EXPERIMENT, samples)["cold_ready_vs_transfer"] == 1.5


def test_publication_counts_the_seeding_and_the_archive_and_workers_their_bytes_and_memory() -> None:
    assert found(coldstart.EXPERIMENT, {
        "publish": [{"publish_s": 4}, {"publish_s": 6}, {"publish_s": 5}],
        "build mar": [{"build_s": 100}],
        "build no-archive": [{"build_s": 2}],
        "second worker": [{"ready_s": 0.25, "sent_bytes": 0}],
        "second worker, stock": [{"ready_s": 5}],
        "4 cold workers": [{"sent_over_size": 1.5}, {"sent_over_size": 1}, {"sent_over_size": 1}],
        "two workers": [{"weights_pss": 1.01, "private_mib": 30}],
    }) == {
        "publish_vs_mar_build": 0.05,
        "publish_vs_no_archive_build": 2.5,
        "second_worker_vs_stock": 0.05,
        "second_worker_bytes": 0,
        "concurrent_workers_bytes": 1,
        "two_workers_weights_pss": 1.01,
        "worker_private_mib": 30,
    }  # fmt: skip


def test_turnaround_runs_to_the_first_answer_and_failed_requests_are_a_count() -> None:
    assert found(turnaround.EXPERIMENT, {
        "change, weightless": [{"answer_s": 3}],
        "change, mar": [{"answer_s": 100}],
        "change, no-archive": [{"answer_s": 6}],
        "promote": [{"answer_s": 2, "alias_to_answer_s": 1}],
        "rollback": [{"answer_s": 1.5, "alias_to_answer_s": 0.5}],
        "quiet, one part": [{"failed": 9, "p99_s": 9}],
        "quiet, all": [{"failed": 0, "p99_s": 0.1}],
        "swaps, one part": [{"failed": 9, "p99_s": 9}],
        "swaps, all": [{"failed": 2, "p99_s": 0.15}],
    }) == {
        "turnaround_vs_mar": 0.03,
        "turnaround_vs_no_archive": 0.5,
        "turnaround_s": 3,
        "alias_to_answer_s": 1,
        "rollback_s": 1.5,
        "rollback_alias_to_answer_s": 0.5,
        "swap_failed_requests": 2,
        "swap_p99_vs_quiet": 1.5,
    }  # fmt: skip


def test_growth_is_seconds_for_each_gb_more_over_those_of_the_fastest_copier_at_each_size() -> None:
    sizes = dict(zip(growth.NAMES, (1, 4, 14), strict=True))
    samples: Taken = {f"slim cold, {name}": [{"seconds_s": 0.5 + 2 * gb, "size_gb": gb}] for name, gb in sizes.items()}
    for copier, per_gb in (("mc mirror", 1.6), ("s5cmd", 5), ("s5cmd tuned", 3)):
        samples |= {
            f"transfer {copier}, {name}": [{"seconds_s": per_gb * gb, "size_gb": gb}] for name, gb in sizes.items()
        }
    assert found(growth.EXPERIMENT, samples) == {
        "cold_ready_growth": 1.25,
        "cold_ready_growth_s_per_gb": 2,
        "cold_ready_growth_linear": 1,
    }


def test_a_smaller_model_has_fewer_heads_of_the_same_width() -> None:
    shape = SHAPES["falcon-7b-shape"]
    assert scaled(shape, 1) == shape
    small = scaled(shape, 0.1)
    assert (small.hidden, small.heads, small.layers) == (448, 7, 32)
    assert scaled(shape, 0.0001).hidden == 64


def test_too_little_disk_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughDisk, match=r"required \d+ MiB, found \d+ MiB free"):
        require_disk(tmp_path, 1 << 60)


def test_a_changed_shard_is_another_each_time_and_stays_finite(tmp_path: Path) -> None:
    import numpy

    shard = tmp_path / "model.safetensors"
    weights = {"a": numpy.ones(64, numpy.float32), "b": numpy.ones(64, numpy.float32)}
    seen = set()
    for number in range(1, 256):
        save_file(weights, shard)
        size = shard.stat().st_size
        change(shard, number)
        assert shard.stat().st_size == size
        after = load_file(shard)
        assert all(numpy.abs(after[name] - 1).max() < 1e-6 for name in weights)
        seen.add(shard.read_bytes())
    assert len(seen) == 255


SMAPS = """\
7f00-7f10 r--p 00000000 fe:00 1  /cache/blobs/blake3/ab
Size:               1000 kB
Pss:                 500 kB
Private_Clean:         7 kB
Private_Dirty:         0 kB
7f10-7f20 rw-p 00000000 00:00 0  [heap]
Pss:                  90 kB
Private_Clean:         1 kB
Private_Dirty:        40 kB
7f20-7f30 r--p 00000000 fe:00 1  /cache-of-others/blob
Pss:                  10 kB
Private_Clean:         2 kB
Private_Dirty:         0 kB
"""


def test_memory_of_a_worker_tells_its_share_of_the_weights_from_what_is_its_own() -> None:
    found = mapped(SMAPS, "/cache")
    assert (found.weights_pss, found.private) == (500 * 1024, 43 * 1024)
