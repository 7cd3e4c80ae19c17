"""Experiment `turnaround`: how long until a change of weights is answered from, and what requests feel of it.

One shard is changed. With slim MARs: `make seed`, until the first answer of the new release through the door. With embedded
ones: the archiver, the registration on stock TorchServe, the first answer; what a person types there costs nothing. Then the
alias moves between releases that are in the cache, forward by `make promote` and back by `make rollback`: from the start of the
command, and from the moment at which MinIO had the alias. Last, swaps of falcon-tiny under open-loop load, against the same load
for the same time with none. A swap begins every 3 s, or at once when the one before took longer: 20 of them last a minute, in which
about 200 requests arrive: enough for a p99 that is not just the slowest. The same swaps back to back are said beside it.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from loadtest.bench.coldstart import built
from loadtest.bench.experiment import Bench, BenchFailed, Experiment, Ratio, median, over
from loadtest.bench.measured import PROMPT, TINY, Measured, built_in, measured, seed
from loadtest.bench.node import Node
from loadtest.bench.openloop import Asked, Load, percentile
from loadtest.bench.transfer import settle
from weightless.release import Alias
from weightless.store import Store

_LONG = 3  # samples of what a rebuilt .mar is compared in
_LOOK_S, _PATIENCE_S = 0.01, 600.0
_FIRST, _EMBEDDED = 101, 151  # numbers of the changes, so that no other experiment has published the same
RATE, _EVERY_STREAM = 4.0, 4  # requests a second, of which every 4th is a stream
SWAPS, PACE_S = 20, 3.0


def run(bench: Bench) -> None:
    """The whole experiment.

    Raises:
        NotEnoughDisk: with what is required.
        BenchFailed: the new release was not served; the agent's words.
    """
    with measured(bench, copies=10) as model:
        bench.tell("  starting the stock TorchServe, and serving the model")
        bench.node.make("baseline")
        bench.node.make("promote", f"MODEL={model.model}", f"RELEASE={model.release}")
        bench.fact("model", {"name": model.model, "bytes": model.size})
        _changes(bench, model)
        bench.node.make("baseline-stop")
        _moves(bench, model)
    _swaps(bench)


# ---- one shard changed


def _changes(bench: Bench, model: Measured) -> None:
    counts = {"weightless": bench.count, "mar": min(bench.count, _LONG), "no-archive": bench.count}
    for number, arm in bench.rounds(list(counts)):
        if number > counts[arm]:
            continue
        if arm == "weightless":
            _slim(bench, model, _FIRST + number - 1)
        else:
            _embedded(bench, model, arm, _EMBEDDED + 10 * list(counts).index(arm) + number - 1)


def _slim(bench: Bench, model: Measured, number: int) -> None:
    before = bench.node.status()["models"][model.model]["serving"]
    with model.changed(number) as folder:
        settle()
        moved = _answered(bench.node, model.model, before, lambda: model.seed(folder, promote=True))
    bench.record("change, weightless", **moved)


def _embedded(bench: Bench, model: Measured, variant: str, number: int) -> None:
    """The release is published before, since the agent builds the archive from it: that is not counted."""
    with model.changed(number) as folder:
        release = model.seed(folder, promote=False)
    settle()
    found = model.cold_start(variant=variant, release=release)
    model.remove_archive(found)
    built(bench, found)
    bench.record(f"change, {variant}", answer_s=found["build_s"] + found["first_s"])


# ---- the alias moves


def _moves(bench: Bench, model: Measured) -> None:
    """Forward and back between two releases of which the node has every byte."""
    served = bench.node.status()["models"][model.model]["serving"]
    for _ in range(bench.count):
        for arm, before, words in (
            ("promote", served, ("promote", f"MODEL={model.model}", f"RELEASE={model.release}")),
            ("rollback", model.release, ("rollback", f"MODEL={model.model}")),
        ):
            settle()
            bench.record(arm, **_answered(bench.node, model.model, before, lambda words=words: bench.node.make(*words)))  # type: ignore[misc]


def _answered(node: Node, model: str, before: str, command: Callable[[], object]) -> dict[str, float]:
    """Seconds until the model answers from another release than `before`: from the command's start, and from the alias's move."""
    with ThreadPoolExecutor(1) as pool:
        began = time.time()
        done = pool.submit(command)
        while node.status()["models"][model]["serving"] in (before, None):
            if time.time() - began > _PATIENCE_S or (done.done() and done.exception()):
                done.result()
                raise BenchFailed(
                    f"{model}: required another release than {before} served, found none: {node.status()}"
                )
            time.sleep(_LOOK_S)
        while node.answered_by(model, PROMPT) == before:
            time.sleep(_LOOK_S)
        answered = time.time()
        done.result()
    moved = datetime.fromisoformat(json.loads(node.make("history", f"MODEL={model}", "JSON=1"))[0]["at"]).timestamp()
    return {"answer_s": answered - began, "alias_to_answer_s": answered - moved}


# ---- requests meanwhile


def _swaps(bench: Bench) -> None:
    """Half of the swaps, a quiet time as long, and the same again the other way round."""
    node, scale = bench.node, min(1.0, bench.scale)
    half, pace = 2 * max(1, round(SWAPS * scale / 4)), PACE_S * scale
    store = Store(node.store)
    first = store.release(TINY, "v1")
    folder = bench.scratch / f"{TINY}-v2"
    built_in(folder.name, folder)
    other = store.release(TINY, str(seed(node, TINY, folder, promote=False)["release"]))
    node.make("promote", f"MODEL={TINY}", f"RELEASE={first.name}")
    everything: dict[str, list[Asked]] = {"quiet": [], "swaps": [], "back to back": []}
    length = 0.0

    def swap(count: int, pace: float) -> None:
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number * pace - time.monotonic()))
            release = first if number % 2 else other
            store.put_alias(TINY, Alias.of(release, "bench"), store.alias(TINY))
            node.ask("POST", "/refresh")
            node.wait_serving(TINY, release.name)
        time.sleep(max(0.0, began + count * pace - time.monotonic()))

    actions = {
        "swaps": lambda: swap(half, pace),
        "quiet": lambda: time.sleep(length),
        "back to back": lambda: swap(2 * half, 0.0),
    }

    for number, name in enumerate(("swaps", "quiet", "quiet", "swaps", "back to back")):
        load = Load(f"{node.agent}/predictions/{TINY}", _BODY, RATE, _EVERY_STREAM, number)
        began = time.monotonic()
        asked = _under(load, actions[name])
        length = time.monotonic() - began
        everything[name] += asked
        bench.record(f"{name}, one part", **_figures(asked), length_s=length)
        for error, count in Counter(one.error for one in asked if one.error).most_common(3):
            bench.tell(f"    {count} failed: {error}")
    for name, asked in everything.items():
        bench.record(f"{name}, all", **_figures(asked))
    arrivals = {"requests_per_s": RATE, "every_stream": _EVERY_STREAM, "arrivals": "Poisson"}
    bench.fact("load", arrivals | {"swaps": 2 * half, "pace_s": pace})


_BODY = {"input": PROMPT, "parameters": {"max_new_tokens": 16, "do_sample": False}}


def _under(load: Load, action: Callable[[], None]) -> list[Asked]:
    """What became of the requests that were asked while `action` ran."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(load.offer, stop)
        try:
            action()
        finally:
            stop.set()
        return asking.result()


def _figures(asked: list[Asked]) -> dict[str, float]:
    latencies = [one.seconds for one in asked] or [0.0]
    return {
        "requests": len(asked),
        "streams": sum(one.stream for one in asked),
        "failed": sum(one.error is not None for one in asked),
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
    }


EXPERIMENT = Experiment(
    "turnaround",
    "from changed weights to the first new answer, and swaps under load",
    run,
    (
        Ratio("turnaround_vs_mar", "one shard changed to the first new answer, over rebuilding and registering the .mar",
              over("change, weightless", "change, mar", "answer_s"), at_most=0.03),
        Ratio("turnaround_vs_no_archive", "the same, over the folder",
              over("change, weightless", "change, no-archive", "answer_s")),
        Ratio("turnaround_s", "one shard changed: from the start of make seed to the first new answer, s",
              median("change, weightless", "answer_s")),
        Ratio("alias_to_answer_s", "from the alias's move to the first new answer, every byte in the cache, s",
              median("promote", "alias_to_answer_s")),
        Ratio("rollback_s", "from the start of make rollback to the first answer of the old release, s",
              median("rollback", "answer_s")),
        Ratio("rollback_alias_to_answer_s", "the same from the alias's move, s", median("rollback", "alias_to_answer_s")),
        Ratio("swap_failed_requests", "requests that failed or hung over 20 swaps under open-loop load",
              median("swaps, all", "failed"), at_most=0),
        Ratio("swap_p99_vs_quiet", "p99 of requests meanwhile, over p99 with no swap",
              over("swaps, all", "quiet, all", "p99_s"), at_most=2),
        Ratio("swap_p99_vs_quiet_back_to_back", "the same with no pause between swaps",
              over("back to back, all", "quiet, all", "p99_s")),
    ),
)  # fmt: skip
