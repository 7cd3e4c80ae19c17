"""The serving ratios and the figures of a load, against answers whose numbers can be told by hand; and the client's own."""

from pathlib import Path

import pytest

from loadtest.bench import load, serving
from loadtest.bench.client import count
from loadtest.bench.experiment import Bench, Experiment
from loadtest.bench.load import Answer, figures, percentile, requests, shorter
from loadtest.bench.results import ratios


def found(samples: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    def record(bench: Bench) -> None:
        for arm, taken in samples.items():
            for sample in taken:
                bench.record(arm, **sample)

    bench = Bench(Path("/nowhere"), tell=lambda text: None)
    bench.run(Experiment("serving", "", record, ()))
    return {ratio.key: value for ratio, value in ratios([serving.EXPERIMENT], bench.samples)}


def under_load(rate: float, p95: float) -> list[dict[str, float]]:
    return [{"rate_tokens_s": rate, "latency_p95_s": p95}]


def test_both_profiles_and_both_ways_to_batch_are_compared_with_the_original_at_16_users() -> None:
    keys = found({
        "original, 16 users": under_load(10, 80),
        "original, 4 users": under_load(1, 1),
        "slim continuous throughput, 16 users": under_load(40, 20),
        "slim continuous memory, 16 users": under_load(15, 60),
        "slim static throughput, 16 users": under_load(30, 40),
        "slim continuous throughput, 4 users": under_load(1000, 1),
    })  # fmt: skip
    assert keys == {
        "throughput_vs_original": 4,
        "p95_vs_original": 0.25,
        "throughput_vs_original_memory": 1.5,
        "p95_vs_original_memory": 0.75,
        "throughput_vs_original_static_throughput": 3,
        "p95_vs_original_static_throughput": 0.5,
    }


def test_one_user_is_compared_with_the_bare_call_in_the_dtype_that_is_faster() -> None:
    def seconds(*values: float) -> list[dict[str, float]]:
        return [{"answer_s": value} for value in values]

    bare = {"bare generate float32, alone": seconds(4, 4, 1), "bare generate bfloat16, alone": seconds(2, 9, 2)}
    slim = {"slim continuous memory, alone": seconds(2, 3, 3), "slim continuous throughput, alone": seconds(5)}
    keys = found(bare | slim)
    assert keys["single_user_vs_bare_generate"] == 1.5
    assert keys["single_user_vs_bare_generate_throughput"] == 2.5


def test_the_door_is_what_it_adds_and_what_it_carries() -> None:
    keys = found({
        "door, 1 client": [{"answer_p50_ms": 1.5}, {"answer_p50_ms": 1.75}, {"answer_p50_ms": 9}],
        "TorchServe alone, 1 client": [{"answer_p50_ms": 1.25}],
        "door, 32 clients": [{"rate_requests_s": 3000}],
        "TorchServe alone, 32 clients": [{"rate_requests_s": 4000}],
        "embeddings, door": [{"rate_embeddings_s": 90}],
        "embeddings, bare model": [{"rate_embeddings_s": 100}],
    })  # fmt: skip
    assert keys == {"door_added_ms": 0.5, "door_vs_torchserve_rps": 0.75, "embeddings_vs_bare_model": 0.9}


def test_the_figures_of_a_load() -> None:
    stream = Answer(began=10, ended=14, pieces=(11, 11.5, 13, 14), count=20)
    whole = Answer(began=12, ended=20, pieces=(), count=60)
    told = figures([stream, whole])
    assert told["rate_tokens_s"] == 5, "20 tokens in the 4 s before a user had nothing more to ask"
    assert told["rate_to_the_end_tokens_s"] == 8, "80 tokens in 10 s"
    assert (told["latency_p50_s"], told["latency_p95_s"]) == (4, 8)
    assert told["first_token_p50_s"] == 1
    assert (told["between_tokens_p50_ms"], told["between_tokens_p95_ms"]) == (500, 1500), "the end is no token"
    assert "first_token_p50_s" not in figures([whole])


def test_tokens_count_as_long_as_every_user_waits_for_an_answer() -> None:
    short, second = Answer(0, 4, (1, 4), 10), Answer(4, 12, (6, 8, 10, 11, 12), 40)
    long = Answer(0, 8, (2, 4, 6, 8), 30)
    assert load.busy_until([short, second, long]) == 8
    assert load.tokens_until(second, 8) == 20, "half of its pieces had come"
    assert figures([short, second, long])["rate_tokens_s"] == (10 + 20 + 30) / 8
    assert figures([short])["rate_tokens_s"] == 2.5, "a lone user is busy to the end"
    assert load.tokens_until(Answer(4, 12, (), 40), 8) == 0


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(number) for number in range(32, 0, -1)]
    assert percentile(values, 50) == 16
    assert percentile(values, 95) == 31
    assert percentile([7], 95) == 7


def test_every_arm_gets_the_same_requests_with_lengths_mixed_evenly() -> None:
    assert requests(32, stream=False) == requests(32, stream=False)
    assert requests(32, stream=True)[:8] == requests(8, stream=True)
    lengths = [body["parameters"]["max_new_tokens"] for body in requests(32, stream=False)]
    assert sorted(lengths[:8]) == sorted(lengths[24:]) == list(load.LENGTHS)
    assert (min(lengths), max(lengths)) == (16, 128)


def test_an_answer_of_another_length_than_asked_is_noticed() -> None:
    bodies = requests(2, stream=False)
    right = [Answer(0, 1, (), body["parameters"]["max_new_tokens"]) for body in bodies]
    assert shorter(right, bodies) == 0
    assert shorter([right[0], Answer(0, 1, (), 3)], bodies) == 1


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ([{"generated_text": "x", "generated_tokens": 3}], 3),
        ({"generated_text": "x", "generated_tokens": 4, "finish_reason": "length"}, 4),
        ([{"embedding": [1.0]}, {"embedding": [0.5]}], 2),
    ],
)
def test_the_client_counts_tokens_and_vectors(answer: object, counted: int) -> None:
    assert count(answer) == counted
