"""Embeddings a second of one user: through the front door, and of the task class alone with the same batches."""

import statistics
from random import Random

from loadtest.bench.bare import Bare
from loadtest.bench.experiment import Bench
from loadtest.bench.load import send
from loadtest.bench.node import Node
from loadtest.bench.server import ROOT
from loadtest.bodies import TEXT
from weightless.modelfile import NodeSettings

BUILT_IN = ROOT / "build" / "samples"  # where `make up` makes them
MODEL = "minilm"
BATCH, REQUESTS = 16, 20  # texts of a request, requests of a sample
DOOR, BARE = "embeddings, door", "embeddings, bare model"


def measure(bench: Bench, node: Node) -> None:
    """Samples of both, taking turns. The rate is that of the median request."""
    random = Random(16)  # noqa: S311  # always the same is what is wanted
    words = TEXT.split()
    number = max(2, int(REQUESTS * min(1, bench.scale)))
    bodies = [{"input": [" ".join(random.choices(words, k=16)) for _ in range(BATCH)]} for _ in range(number)]
    bench.fact("embeddings", f"{MODEL}, {number} requests of {BATCH} texts of 16 words, one after another")
    url = f"{node.agent}/predictions/{MODEL}"
    with Bare("embed", BUILT_IN / MODEL, NodeSettings().model_dump(mode="json")) as bare:
        send(url, 1, bodies[:2])
        for body in bodies[:2]:
            bare.ask(body)
        for _, arm in bench.rounds((DOOR, BARE)):
            if arm == DOOR:
                seconds = [answer.ended - answer.began for answer in send(url, 1, bodies)]
            else:
                seconds = [bare.ask(body)[0] for body in bodies]
            bench.record(arm, rate_embeddings_s=BATCH / statistics.median(seconds))
