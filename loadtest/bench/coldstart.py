"""Experiment `coldstart`: a cold, verified start of a slim MAR against the embedded forms, and against the bare transfer.

Every start is one POST /coldstart of the agent, which says what it measured: from the registration to READY and to the first
token of a fixed prompt. The embedded forms start on the stock TorchServe, and once more with the zygote's workers ("same
workers"), which shows what is due to where the weights lie. An archive is built once for each release and form, before its first
start; its seconds count for publication alone. All arms take turns, and what was written is synced before each sample.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadtest.bench.experiment import Bench, BenchFailed, Experiment, Ratio, median, over
from loadtest.bench.measured import Measured, measured
from loadtest.bench.transfer import copiers, fastest, settle
from loadtest.bench.workers import bytes_of_cold_workers, memory_of_workers
from weightless.store import Store

MIB = 1 << 20
COLD, WARM, WORKER = "slim cold", "slim warm", "second worker"
TOGETHER = "4 cold workers"
STOCK_WORKER = "second worker, stock"
STARTS: Mapping[str, Mapping[str, str]] = {
    COLD: {"variant": "slim", "cache": "cold"},
    WARM: {"variant": "slim", "cache": "warm"},
    "slim cold, 1 Gb/s": {"variant": "slim", "cache": "cold", "link": "1gbit"},
    "slim cold, 10 Gb/s": {"variant": "slim", "cache": "cold", "link": "10gbit"},
    "mar": {"variant": "mar"},
    "tgz": {"variant": "tgz"},
    "store": {"variant": "store"},
    "no-archive": {"variant": "no-archive"},
    "mar, same workers": {"variant": "mar", "on": "zygote"},
    "no-archive, same workers": {"variant": "no-archive", "on": "zygote"},
    WORKER: {"variant": "worker"},
    STOCK_WORKER: {"variant": "worker", "on": "baseline"},
}
_LONG = 3  # samples of what takes long: a publication with its builds, the memory after 50 requests for each worker


def run(bench: Bench) -> None:
    """The whole experiment.

    Raises:
        NotEnoughDisk: with what is required.
        BenchFailed: a start failed; the agent's words.
    """
    with measured(bench, copies=12) as model:
        bench.tell("  starting the stock TorchServe")
        bench.node.make("baseline")
        bench.fact("model", {"name": model.model, "bytes": model.size, "weights": model.weights})
        bench.fact(
            "page cache", "objects and archives warm; a cold start's own cache empty; dirty pages synced before each"
        )
        _starts(bench, model)
        _several(bench, model)
        _publications(bench, model)
        bench.node.make("baseline-stop")


def _starts(bench: Bench, model: Measured) -> None:
    """Starts and bare transfers, alternating."""
    transfers = copiers(bench.node, model.model, model.release, bench.scratch)
    phases: dict[str, list[Mapping[str, float]]] = {}

    def transfer(name: str) -> None:
        bench.record(f"transfer {name}", seconds_s=transfers[name]())

    def start(arm: str) -> None:
        phases.setdefault(arm, []).append(_start(bench, model, arm))

    arms: dict[str, Callable[[], None]] = {arm: (lambda arm=arm: start(arm)) for arm in STARTS}  # type: ignore[misc]
    arms |= {f"transfer {name}": (lambda name=name: transfer(name)) for name in transfers}  # type: ignore[misc]
    for _, arm in bench.rounds(list(arms)):
        settle()
        arms[arm]()
    bench.fact("phases", phases)


def _start(bench: Bench, model: Measured, arm: str) -> Mapping[str, float]:
    """One sample; the phases of the start."""
    store = Store(bench.node.store)
    before = store.bytes_sent("models")
    found = model.cold_start(**STARTS[arm])
    sent = store.bytes_sent("models") - before
    if found["build_s"] is not None and found["variant"] != "slim":
        built(bench, found)
    seconds = {"ready_s": found["ready_s"], "first_s": found["first_s"]}
    mib = {"link_mib_s": "link_bytes_per_s", "peak_memory_mib": "peak_memory_bytes", "disk_mib": "disk_bytes"}
    figures = {name: value for name, value in seconds.items() if value is not None}
    figures |= {name: found[field] / MIB for name, field in mib.items() if found[field] is not None}
    if arm == WORKER:  # the first worker started warm: whatever was fetched, the second fetched
        figures["sent_bytes"] = sent
    if arm == COLD and found["bytes_from_store"] < model.size:
        raise BenchFailed(
            f"{arm}: required {model.size} bytes from the store, found {found['bytes_from_store']}: not cold"
        )
    if arm == WARM and found["bytes_from_store"]:
        raise BenchFailed(f"{arm}: required no byte from the store, found {found['bytes_from_store']}: not warm")
    bench.record(arm, **figures)
    phases: Mapping[str, float] = found["phases"]
    return phases


def built(bench: Bench, found: Mapping[str, Any]) -> None:
    """Keep what the archiver took for the form that a cold start began with."""
    bench.record(f"build {found['variant']}", build_s=found["build_s"], archive_mib=found["archive_bytes"] / MIB)


def _several(bench: Bench, model: Measured) -> None:
    """Workers that start together, and the memory of two."""
    for _ in range(min(bench.count, _LONG)):
        settle()
        sent, seconds = bytes_of_cold_workers(model, 4)
        bench.record(TOGETHER, sent_over_size=sent / model.size, ready_s=seconds)
    requests = max(5, round(50 * min(1.0, bench.scale)))
    for _ in range(min(bench.count, _LONG)):
        two = memory_of_workers(model, 2, requests)
        pss = sum(one.weights_pss for one in two) / model.weights
        bench.record("two workers", weights_pss=pss, private_mib=sum(one.private for one in two) / len(two) / MIB)
    bench.fact("two workers", f"{requests} requests for each before their memory was read")


def _publications(bench: Bench, model: Measured) -> None:
    """A new release with its slim MAR, and the embedded folder of the same release."""
    bench.fact(
        "builds of a compressed archive",
        "one of mar, one of tgz: each takes over a minute; turnaround adds some of mar",
    )
    for number in range(min(bench.count, _LONG)):
        with model.changed(number + 1) as folder:
            settle()
            began = time.monotonic()
            release = model.seed(folder, promote=False)
            seeded = time.monotonic() - began
            path = Path(folder) / "slim.mar"
            bench.node.make("mar", f"MODEL={model.model}", f"RELEASE={release}", f"TO={path}")
            seconds = time.monotonic() - began
            bench.record("publish", publish_s=seconds, seed_s=seeded, archive_mib=path.stat().st_size / MIB)
        settle()
        found = model.cold_start(variant="no-archive", release=release)
        built(bench, found)
        model.remove_archive(found)


EXPERIMENT = Experiment(
    "coldstart",
    "a cold, verified start against embedded archives on stock TorchServe",
    run,
    (
        Ratio("publish_vs_mar_build", "a new release with its slim MAR, over building the .mar",
              over("publish", "build mar", "publish_s", "build_s"), at_most=0.05),
        Ratio("publish_vs_no_archive_build", "the same, over building the folder",
              over("publish", "build no-archive", "publish_s", "build_s")),
        Ratio("cold_ready_vs_mar", "cold and verified to READY, over the .mar on stock",
              over(COLD, "mar", "ready_s"), at_most=0.08),
        Ratio("cold_ready_vs_tgz", "over the .tar.gz", over(COLD, "tgz", "ready_s"), at_most=0.12),
        Ratio("cold_ready_vs_store", "over the .mar without compression", over(COLD, "store", "ready_s")),
        Ratio("cold_ready_vs_no_archive", "over the folder", over(COLD, "no-archive", "ready_s"), at_most=0.30),
        Ratio("cold_first_vs_mar", "cold to the first token, over the .mar on stock", over(COLD, "mar", "first_s"), at_most=0.10),
        Ratio("cold_first_vs_no_archive", "over the folder", over(COLD, "no-archive", "first_s"), at_most=0.37),
        Ratio("cold_ready_vs_mar_same_workers", "over the .mar whose worker the zygote forks too",
              over(COLD, "mar, same workers", "ready_s"), at_most=0.12),
        Ratio("cold_ready_vs_no_archive_same_workers", "over the folder whose worker the zygote forks too",
              over(COLD, "no-archive, same workers", "ready_s")),
        *(ratio for link, key in (("1 Gb/s", "1gbit"), ("10 Gb/s", "10gbit")) for ratio in (
            Ratio(f"cold_ready_{key}_vs_mar", f"cold over a link of {link}, over the .mar that is on the node already",
                  over(f"{COLD}, {link}", "mar", "ready_s")),
            Ratio(f"cold_ready_{key}_vs_no_archive", f"cold over a link of {link}, over the folder that is on the node already",
                  over(f"{COLD}, {link}", "no-archive", "ready_s")),
        )),
        Ratio("cold_ready_vs_transfer", "over the bare transfer of the same bytes by the fastest copier",
              lambda samples: samples.median(COLD, "ready_s") / fastest(samples), at_most=1.3),
        Ratio("warm_ready_vs_no_archive", "with a complete cache to READY, over the folder on stock",
              over(WARM, "no-archive", "ready_s"), at_most=0.06),
        Ratio("warm_first_vs_no_archive", "to the first token", over(WARM, "no-archive", "first_s"), at_most=0.12),
        Ratio("second_worker_vs_stock", "one more worker to READY, over stock",
              over(WORKER, STOCK_WORKER, "ready_s"), at_most=0.06),
        Ratio("second_worker_bytes", "bytes that MinIO sends of the weights for one more worker",
              median(WORKER, "sent_bytes"), at_most=0),
        Ratio("concurrent_workers_bytes", "bytes that MinIO sends for four cold workers together, over the model's size",
              median(TOGETHER, "sent_over_size"), at_most=1.0),
        Ratio("two_workers_weights_pss", "weights in memory for two workers, over one copy",
              median("two workers", "weights_pss"), at_most=1.05),
        Ratio("worker_private_mib", "what one more worker has for itself after 50 requests, MiB",
              median("two workers", "private_mib"), at_most=64),
    ),
)  # fmt: skip
