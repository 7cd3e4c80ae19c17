"""Experiment `serving`: throughput and latency under load, one user, the door, and embeddings.

The load is a closed loop of 1, 4 and 16 users: prompts of about 16 tokens, greedy answers of 16 to 128 tokens mixed, the same
requests for everybody. Slim models are asked for streams, which costs them a little and shows the time to the first token; the
original handler gives its answer when it is complete. It gets the dtype that is fastest for it. The slim models stay loaded on
one node, and only one model is asked at a time.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from seeding.samples.make import make_samples

from loadtest.bench import door, embedding, original
from loadtest.bench.bare import Bare
from loadtest.bench.embedding import BUILT_IN
from loadtest.bench.experiment import Bench, BenchFailed, Experiment, Ratio, Samples, over
from loadtest.bench.load import LENGTHS, figures, generation, requests, send, shorter
from loadtest.bench.measured import FULL, PROMPT, TINY, require_disk, seed
from loadtest.bench.node import Node, running_node

ORIGINAL, BARE = "original", "bare generate"
DTYPES = ("bfloat16", "float32")
BATCH = 16
USERS: Mapping[int, int] = {1: 2, 4: 6, 16: 24}  # and how many requests they send
ONE_TOKENS = 32  # of the single user's answer
_LONG_ROUNDS = 5  # samples of what is short for one round of the load, which takes minutes


@dataclass(frozen=True)
class Slim:
    """Node settings that are measured: the same release under a name of its own. `users`: under which loads."""

    batching: str
    profile: str
    users: tuple[int, ...]

    @property
    def arm(self) -> str:
        return f"slim {self.batching} {self.profile}"

    def model(self, base: str) -> str:
        return f"{base}-{self.batching}-{self.profile}"

    def settings(self) -> dict[str, Any]:
        node = {"batching": self.batching, "profile": self.profile, "batch_size": BATCH, "response_timeout_s": 1200}
        return {"release": {"task": "text-generation"}, "node": node}


SHIPPED = Slim("continuous", "memory", (1, 4, 16))  # what a model gets without any settings
THROUGHPUT = Slim("continuous", "throughput", (1, 4, 16))
SLIM = (SHIPPED, THROUGHPUT, Slim("static", "memory", (16,)), Slim("static", "throughput", (16,)))


def loaded(arm: str, users: int) -> str:
    return f"{arm}, {users} users"


def alone(arm: str) -> str:
    return f"{arm}, alone"


def run(bench: Bench) -> None:
    """The whole experiment.

    Raises:
        NotEnoughDisk: with what is required.
        BenchFailed: a part does not start, or does not answer as asked.
    """
    base = FULL if bench.scale >= 1 else TINY
    if base == FULL:
        require_disk(bench.scratch, 10 << 30)
    with tempfile.TemporaryDirectory(dir=bench.scratch, prefix="serving-") as temp:
        _generation(bench, Path(temp), base)
    door.measure(bench)


def _generation(bench: Bench, scratch: Path, base: str) -> None:
    """All that is measured on one stack: one user, embeddings, the load."""
    models = scratch / "models"
    models.mkdir()
    for slim in SLIM:
        (models / f"{slim.model(base)}.yaml").write_text(yaml.safe_dump(slim.settings()))
    bench.tell(f"  starting a stack, with {base} under {len(SLIM)} settings beside a stock TorchServe")
    (folder,) = make_samples(scratch if base == FULL else BUILT_IN, [base])
    with running_node(scratch / "stack", MODELS_CONFIG_DIR=str(models)) as node:
        for slim in SLIM:
            seed(node, slim.model(base), folder, promote=True)
        for slim in SLIM:
            node.wait_serving(slim.model(base))
        _facts(bench, node, base)
        _alone(bench, node, base, folder)
        embedding.measure(bench, node)
        node.make("baseline")
        _load(bench, node, base)


def _facts(bench: Bench, node: Node, base: str) -> None:
    """What the workers say that they chose, from their ledgers."""
    served = {}
    for slim in SLIM:
        (ledger,) = (node.run / "serve" / "ledger" / slim.model(base)).glob("*/*.json")
        found = json.loads(ledger.read_text())
        served[slim.arm] = {name: found[name] for name in ("dtype", "policy", "policy_reason")}
    bench.fact("model", base)
    bench.fact("served", served)
    bench.fact("batch size", {"slim": BATCH, ORIGINAL: 1})


# ---- one user


def _alone(bench: Bench, node: Node, base: str, folder: Path) -> None:
    """One short request through the door, and the bare call for the same prompt in each dtype, taking turns."""
    tokens = max(8, int(ONE_TOKENS * min(1, bench.scale)))
    body = generation(PROMPT, tokens)
    with (
        Bare("generate", folder, {"dtype": DTYPES[0]}) as first,
        Bare("generate", folder, {"dtype": DTYPES[1]}) as other,
    ):
        bares = dict(zip(DTYPES, (first, other), strict=True))
        bench.fact("threads", first.threads)
        arms = {f"{BARE} {dtype}": partial(bare.ask, body) for dtype, bare in bares.items()}
        arms |= {slim.arm: partial(_through, node, slim.model(base), body) for slim in (SHIPPED, THROUGHPUT)}
        lengths = {ask()[1] for ask in arms.values()}  # the first of each is slower, and discarded
        for _, arm in bench.rounds(list(arms)):
            seconds, found = arms[arm]()
            lengths.add(found)
            bench.record(alone(arm), answer_s=seconds)
    if len(lengths) > 1:
        raise BenchFailed(f"{base}: required answers of one length from all, found {sorted(lengths)} tokens")
    bench.fact("alone", f"one request at a time, {lengths.pop()} tokens after the prompt {PROMPT!r}")


def _through(node: Node, model: str, body: dict[str, Any]) -> tuple[float, int]:
    (answer,) = send(f"{node.agent}/predictions/{model}", 1, [body])
    return answer.ended - answer.began, answer.count


# ---- many users


def _load(bench: Bench, node: Node, base: str) -> None:
    """Rounds of the load on every arm; the original in each dtype for one user, then in its fastest."""
    urls = {slim.arm: f"{node.agent}/predictions/{slim.model(base)}" for slim in SLIM}
    rounds = max(1, bench.count // _LONG_ROUNDS)
    numbers = {users: max(min(users, 4), int(number * min(1, bench.scale * 4))) for users, number in USERS.items()}
    bench.fact("load", {
        "requests": {f"{users} users": number for users, number in numbers.items()},
        "prompt": "about 16 tokens", "tokens of an answer": LENGTHS, "rounds": rounds,
        "tokens/s": "while all users waited for an answer; to_the_end: until the last of the fixed set had it",
        "warm-up": "one request of 16 tokens to each arm, discarded",
    })  # fmt: skip
    for dtype in DTYPES:  # one loaded at a time: in float32 it takes twice the checkpoint's size
        with original.served(node, SHIPPED.model(base), dtype) as url:
            _warm(url)
            for _ in range(rounds):
                _one_load(bench, base, f"{ORIGINAL} {dtype}", url, 1, numbers[1])
    best = fastest_original(bench.samples)
    bench.fact("the original's dtype", best)
    for url in urls.values():
        _warm(url)
    with original.served(node, SHIPPED.model(base), best) as url:
        _warm(url)
        for users, number in numbers.items():
            arms = {slim.arm: urls[slim.arm] for slim in SLIM if users in slim.users}
            if users > 1:
                arms[ORIGINAL] = url
            for _, arm in bench.rounds(list(arms), rounds):
                _one_load(bench, base, arm, arms[arm], users, number)


def _warm(url: str) -> None:
    send(url, 1, [generation(PROMPT, 16)])


def _one_load(bench: Bench, base: str, arm: str, url: str, users: int, number: int) -> None:
    bodies = requests(number, stream=not arm.startswith(ORIGINAL))
    answers = send(url, users, bodies)
    wrong = shorter(answers, bodies)
    if wrong and base == FULL:  # the small one was trained to end
        raise BenchFailed(f"{arm}: required answers as long as asked, found {wrong} of {number} that are not")
    bench.record(loaded(arm, users), **figures(answers))


def fastest_original(samples: Samples) -> str:
    """The dtype in which the original handler gives one user the most tokens a second."""
    return max(DTYPES, key=lambda dtype: samples.median(loaded(f"{ORIGINAL} {dtype}", 1), "rate_tokens_s"))


# ---- ratios


def _alone_over_bare(slim: Slim) -> Callable[[Samples], float]:
    def value(samples: Samples) -> float:
        best = min(samples.median(alone(f"{BARE} {dtype}"), "answer_s") for dtype in DTYPES)
        return samples.median(alone(slim.arm), "answer_s") / best

    return value


def _added(samples: Samples) -> float:
    through, direct = (samples.median(f"{arm}, 1 client", "answer_p50_ms") for arm in (door.DOOR, door.DIRECT))
    return through - direct


def _vs_original(slim: Slim, figure: str) -> Callable[[Samples], float]:
    return over(loaded(slim.arm, 16), loaded(ORIGINAL, 16), figure)


RATE, P95 = "rate_tokens_s", "latency_p95_s"
EXPERIMENT = Experiment(
    "serving",
    "generation under load, one user, the front door, and embeddings",
    run,
    (
        Ratio("throughput_vs_original", "tokens/s with 16 users over the original one-request handler's, profile throughput",
              _vs_original(THROUGHPUT, RATE), at_least=3),
        Ratio("throughput_vs_original_memory", "the same, profile memory", _vs_original(SHIPPED, RATE)),
        Ratio("p95_vs_original", "p95 of latency with 16 users over the original's, profile throughput",
              _vs_original(THROUGHPUT, P95), at_most=0.4),
        Ratio("p95_vs_original_memory", "the same, profile memory", _vs_original(SHIPPED, P95)),
        *(
            ratio
            for slim in SLIM[2:]
            for ratio in (
                Ratio(f"throughput_vs_original_{slim.batching}_{slim.profile}",
                      f"the same in static batches, profile {slim.profile}", _vs_original(slim, RATE)),
                Ratio(f"p95_vs_original_{slim.batching}_{slim.profile}",
                      f"the same in static batches, profile {slim.profile}", _vs_original(slim, P95)),
            )
        ),
        Ratio("single_user_vs_bare_generate", "one request through the door over a bare generate call with its fastest dtype, "
              "profile memory", _alone_over_bare(SHIPPED), at_most=1.05),
        Ratio("single_user_vs_bare_generate_throughput", "the same, profile throughput", _alone_over_bare(THROUGHPUT)),
        Ratio("door_added_ms", "what the agent adds to a TorchServe answer at p50, ms", _added, at_most=0.4),
        Ratio("door_vs_torchserve_rps", f"requests/s through the agent over TorchServe alone, {door.CLIENTS} clients",
              over(f"{door.DOOR}, {door.CLIENTS} clients", f"{door.DIRECT}, {door.CLIENTS} clients", "rate_requests_s"),
              at_least=0.5),
        Ratio("embeddings_vs_bare_model", "embeddings/s of one user over those of the bare model with the same batch",
              over(embedding.DOOR, embedding.BARE, "rate_embeddings_s")),
    ),
)  # fmt: skip
