"""Continuous batches on real small models: whoever joins and leaves, each answer is the one that `generate` alone would give."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import load_task
from tasks.generation.parameters import Parameters
from tasks.generation.sequence import Sequence
from tasks.shared.contract import Node
from tasks.shared.errors import DeviceLost, RequestError
from tasks.text_generation import TextGeneration
from transformers import AutoModelForCausalLM

from serve.agent.archive import SlimArchive
from tests.tiny_models import VOCABULARY, make_causal
from weightless.modelfile import NodeSettings
from weightless.release import Content, FileEntry, Location, Release, ReleaseSettings

KINDS = ("falcon", "falcon-alibi", "llama")
MAX_ROWS = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small has nothing to share between threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_causal(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: AutoModelForCausalLM.from_pretrained(folder) for kind, folder in folders.items()}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., TextGeneration]:
    """A model whose batch is empty. `prefill`: tokens of waiting prompts in one step."""

    def loaded(kind: str = "falcon", prefill: int = 12, **node: Any) -> TextGeneration:
        task = load_task("text-generation", folders[kind], {}, Node(**({"continuous": True, "batch_size": 4} | node)))
        assert isinstance(task, TextGeneration)
        if task.facts["policy"] == "continuous":
            task.policy._prefill_tokens = prefill
        return task

    return loaded


def sequence(task: TextGeneration, prompt: list[int], limit: int, **parameters: Any) -> Sequence:
    seed = parameters.pop("seed", None)
    chosen = Parameters(**({"do_sample": False} | parameters))
    return Sequence(prompt, limit, chosen, task._tokenizer, task._end_ids, seed=seed)


def finish(task: TextGeneration, *sequences: Sequence, most: int = 400) -> None:
    for _ in range(most):
        if all(each.done for each in sequences):
            return
        task.step()
    raise AssertionError(f"not done after {most} steps: {[each.generated for each in sequences]}")


@torch.inference_mode()
def by_generate(model: Any, prompt: list[int], limit: int) -> list[int]:
    ids = torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
    found: list[int] = tokens[0, len(prompt) :].tolist()
    return found


plans = st.lists(
    st.tuples(
        st.integers(0, 12),  # the step at which it comes
        st.integers(1, 40),  # tokens of its prompt
        st.integers(1, 30),  # tokens of its answer
        st.none() | st.integers(0, 15),  # how many steps later its client goes away
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize(("kind", "profile"), [*((kind, "memory") for kind in KINDS), ("llama", "throughput")])
def test_whenever_others_come_and_go_every_answer_is_that_of_generate(
    kind: str, profile: str, load: Callable[..., TextGeneration], models: dict[str, Any]
) -> None:
    """Four places for up to nine prompts, taken in 12 tokens a step: they wait, join in pieces, push the width and leave again."""
    task = load(kind, profile=profile)
    said: set[tuple[int, ...]] = set()

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(plan=plans, seed=st.integers(0, 1000))
    def check(plan: list[tuple[int, int, int, int | None]], seed: int) -> None:
        rng = random.Random(seed)
        coming = [
            (at, [rng.randrange(1, VOCABULARY) for _ in range(size)], limit, gone) for at, size, limit, gone in plan
        ]
        running: list[tuple[Sequence, int | None]] = []
        for step in range(500):
            for at, prompt, limit, gone in coming:
                if at == step:
                    one = sequence(task, prompt, limit)
                    running.append((one, None if gone is None else step + gone))
                    task.policy.join([one])
            task.policy.leave([one for one, gone in running if gone == step])
            task.step()
            assert len(task.policy._rows) <= MAX_ROWS
            if step > 12 and all(one.done for one, _ in running):
                break
        for one, _ in running:
            generated = one.ids[len(one.prompt) :]
            if one.error is None:
                assert generated == by_generate(models[kind], one.prompt, one.limit)
                said.add(tuple(generated))
            else:
                assert one.error.kind == "client_gone"
        task.step()
        cache: Any = task.policy._cache  # type: ignore[union-attr]
        assert not task.policy._rows and cache.width == 0

    check()
    assert len(said) > 10, "the model says the same to everything: this test proves nothing"


def test_one_who_comes_later_has_its_first_token_before_the_others_are_done(
    load: Callable[..., TextGeneration],
) -> None:
    task = load(prefill=256)
    early = [sequence(task, [5, 6, 7], 40), sequence(task, [9, 8], 40)]
    task.policy.join(early)
    for _ in range(10):
        task.step()
    late = sequence(task, [30, 31, 32, 33], 3)
    task.policy.join([late])
    task.step()
    assert late.generated == 1 and [one.generated for one in early] == [11, 11]
    task.step()
    task.step()
    assert late.finish_reason == "length" and not any(one.done for one in early)
    assert late.batch == 3


def test_a_long_prompt_does_not_hold_up_those_who_run(load: Callable[..., TextGeneration]) -> None:
    """A step takes 12 tokens of it at most, and gives those who run their next token all the while."""
    task = load(prefill=12)
    runs = sequence(task, [5, 6, 7], 60)
    task.policy.join([runs])
    task.step()
    long = sequence(task, list(range(1, 61)), 5)
    task.policy.join([long])
    for step in range(1, 5):
        task.step()
        assert (runs.generated, long.generated) == (1 + step, 0)
    task.step()
    assert (runs.generated, long.generated) == (6, 1)


def test_one_who_left_is_out_of_the_batch_at_the_next_step(load: Callable[..., TextGeneration]) -> None:
    task = load(prefill=256)
    gone, stays, waits = (sequence(task, [number, 3], 50) for number in (5, 6, 7))
    task.policy.join([gone, stays])
    task.step()
    task.policy._max_rows = 2
    task.policy.join([waits])
    task.policy.leave([gone])
    task.step()
    assert task.policy._rows == [stays, waits]
    assert gone.generated == 1


@pytest.mark.parametrize("parameters", [{"top_k": 0}, {"top_p": 0.8}, {"repetition_penalty": 2.0, "top_k": 50}])
def test_a_seed_draws_the_same_whoever_is_in_the_batch(
    load: Callable[..., TextGeneration], parameters: dict[str, Any]
) -> None:
    task = load()
    options = {"do_sample": True, "temperature": 1.5} | parameters
    alone = sequence(task, [5, 6, 7, 8], 25, seed=42, **options)
    task.policy.join([alone])
    finish(task, alone)
    others = [
        sequence(task, [number] * number, number, do_sample=number % 2 == 0, seed=number) for number in (3, 9, 14)
    ]
    again = sequence(task, [5, 6, 7, 8], 25, seed=42, **options)
    task.policy.join(others[:2])
    task.step()
    task.policy.join([again])
    task.step()
    task.policy.join(others[2:])
    finish(task, again, *others)
    assert again.ids == alone.ids and alone.generated > 5


def test_one_that_is_late_fails_alone_wherever_it_is(load: Callable[..., TextGeneration]) -> None:
    task = load(prefill=12)
    running, joining, waiting, good = (
        sequence(task, prompt, 20) for prompt in ([5, 6], list(range(1, 40)), [7], [8, 9])
    )
    task.policy.join([running, good])
    task.step()
    task.policy.join([joining, waiting])
    task.step()
    for late in (running, joining, waiting):
        late.deadline = 0.0
    task.step()
    assert [one.error.code for one in (running, joining, waiting) if one.error] == [504, 504, 504]
    finish(task, good)
    assert good.error is None


class Fragile(torch.nn.Module):
    """A fake of a model that fails on a token, or on more rows than `most`, as if it had run out of memory."""

    def __init__(self, inner: Any, poison: int = -1, most: int = 99, error: Exception | None = None) -> None:
        super().__init__()
        self.inner, self.config, self.device = inner, inner.config, inner.device
        self.poison, self.most, self.error = poison, most, error

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if (input_ids == self.poison).any():
            raise self.error or RuntimeError("broken")
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(input_ids=input_ids, **more)


def answers(task: TextGeneration, prompts: list[list[int]], limit: int = 12) -> list[Sequence]:
    """Two come first and two later."""
    rows = [sequence(task, prompt, limit) for prompt in prompts]
    task.policy.join(rows[:2])
    for _ in range(3):
        task.step()
    task.policy.join(rows[2:])
    finish(task, *rows)
    return rows


PROMPTS = [[5, 6, 7], [11], [21, 22], [31, 32, 33, 34]]


def test_a_step_that_does_not_fit_into_memory_is_done_in_parts(load: Callable[..., TextGeneration]) -> None:
    task = load(prefill=256)
    expected = [row.ids for row in answers(task, PROMPTS)]
    task.policy._model = Fragile(task.policy._model, most=1)  # type: ignore[union-attr]
    assert [row.ids for row in answers(task, PROMPTS)] == expected
    task.policy._model.most = 0  # type: ignore[union-attr]
    assert {row.error and row.error.kind for row in answers(task, PROMPTS)} == {"out_of_memory"}


@pytest.mark.parametrize("place", [0, 2])
def test_one_that_breaks_the_model_takes_no_other_with_it(load: Callable[..., TextGeneration], place: int) -> None:
    """Its prompt breaks it, or the second token that it says, when it runs among others."""
    task = load(prefill=256)
    expected = [row.ids for row in answers(task, PROMPTS)]
    own = expected[place][len(PROMPTS[place]) + 1]
    assert not any(own in ids for index, ids in enumerate(expected) if index != place), "choose other prompts"
    for poison in (PROMPTS[place][0], own):
        inner = task.policy._model  # type: ignore[union-attr]
        task.policy._model = Fragile(inner, poison=poison)  # type: ignore[union-attr]
        rows = answers(task, PROMPTS)
        task.policy._model = inner  # type: ignore[union-attr]
        assert [row.error.kind if row.error else None for row in rows] == [
            "internal_error" if index == place else None for index in range(4)
        ]
        assert [row.ids for index, row in enumerate(rows) if index != place] == [
            ids for index, ids in enumerate(expected) if index != place
        ]


def test_when_the_cache_cannot_grow_the_longest_goes_and_the_others_lose_nothing(
    load: Callable[..., TextGeneration], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(prefill=256)
    expected = [row.ids for row in answers(task, PROMPTS, limit=80)]
    cache: Any = task.policy._cache  # type: ignore[union-attr]
    place, failed = cache._place, list[int]()

    def full(rows: int, width: int, at: int, like: Any = None) -> None:
        if width > 64 and not failed:
            failed.append(width)
            raise torch.OutOfMemoryError("CUDA out of memory")
        place(rows, width, at, like)

    monkeypatch.setattr(cache, "_place", full)
    rows = answers(task, PROMPTS, limit=80)
    assert failed
    lost = [index for index, row in enumerate(rows) if row.error is not None]
    assert len(lost) == 1 and rows[lost[0]].error.kind == "out_of_memory"  # type: ignore[union-attr]
    assert [row.ids for index, row in enumerate(rows) if index not in lost] == [
        ids for index, ids in enumerate(expected) if index not in lost
    ]


def test_a_lost_device_is_nobody_s_own_fault(load: Callable[..., TextGeneration]) -> None:
    task = load(prefill=256)
    lost = torch.AcceleratorError("device-side assert")
    task.policy._model = Fragile(task.policy._model, poison=5, error=lost)  # type: ignore[union-attr]
    task.policy.join([sequence(task, [5], 4)])
    with pytest.raises(DeviceLost):
        task.step()


def test_a_model_that_cannot_join_runs_static_batches_and_says_why(tmp_path: Path) -> None:
    """It asks for something that only `generate` does. Its streams still come token by token."""
    folder = make_causal(tmp_path, "llama")
    config = folder / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"no_repeat_ngram_size": 2, ', 1))
    task = load_task("text-generation", folder, {}, Node(continuous=True, batch_size=4))
    assert isinstance(task, TextGeneration)
    assert task.facts["policy"] == "static"
    assert "generation_config.json sets no_repeat_ngram_size" in task.facts["policy_reason"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [sequence(task, prompt, 9) for prompt in PROMPTS]
    task.policy.join(rows[:2])
    task.step()
    assert [row.generated for row in rows] == [1, 1, 0, 0]
    task.policy.join(rows[2:])
    task.policy.leave(rows[:1])
    finish(task, *rows)
    assert rows[0].error is not None and rows[0].generated == 1
    for row in rows[1:]:
        assert row.ids[len(row.prompt) :] == by_generate(model, row.prompt, 9)


@pytest.mark.parametrize(
    ("node", "policy", "reason"),
    [
        (Node(continuous=True), "continuous", "join and leave"),
        (Node(batching="static"), "static", "set for this node"),
        (Node(workers=2), "static", "2 workers"),
        (Node(), "static", "does not ask"),
    ],
)
def test_the_status_says_which_policy_and_why(folders: dict[str, Path], node: Node, policy: str, reason: str) -> None:
    facts = load_task("text-generation", folders["llama"], {}, node).facts
    assert facts["policy"] == policy and reason in facts["policy_reason"]


def test_the_figures_of_a_request_are_counted(load: Callable[..., TextGeneration]) -> None:
    task = load(prefill=256)
    request = task.parse({"input": ["The weights", "A"], "parameters": {"do_sample": False, "max_new_tokens": 3}})
    running = task.join(request)
    assert running.count().began is None
    while running.result() is None:
        task.step()
    figures = running.count()
    assert figures.prompt_tokens == sum(len(prompt.ids) for prompt in request.prompts)
    assert (figures.generated_tokens, figures.batch) == (6, 2)
    assert figures.began is not None and figures.first_token is not None and figures.began <= figures.first_token
    assert not isinstance(running.result(), RequestError)


def settings_of(task: str, **node: Any) -> dict[str, Any]:
    """The model-config.yaml of an archive for such a node."""
    files = (FileEntry(path="config.json", size=1, blake3="0" * 64, sha256="0" * 64),)
    settings = ReleaseSettings(task=task)
    content = Content(model="m", created="2026-11-22T16:10:03Z", source={"folder": "m"}, files=files, settings=settings)
    release = Release.make("v1", content, Location(bucket="models", versions={"m/config.json": "1"}))
    return SlimArchive("m", "v1", NodeSettings(**node), release).config()


@pytest.mark.parametrize(
    ("task", "node", "continuous", "batch", "delay"),
    [
        ("text-generation", {}, True, 16, 1),
        ("text-generation", {"batch_size": 4, "max_batch_delay_ms": 50}, True, 4, 1),
        ("text-generation", {"workers": 2, "batch_size": 4, "max_batch_delay_ms": 50}, False, 4, 50),
        ("text-generation", {"batching": "static"}, False, 1, 10),
        ("embeddings", {}, False, 1, 10),
    ],
)
def test_an_archive_asks_for_continuous_batches_where_they_are_possible(
    task: str, node: dict[str, Any], continuous: bool, batch: int, delay: int
) -> None:
    config = settings_of(task, **node)
    found = (config["continuousBatching"], config["batchSize"], config["maxBatchDelay"])
    assert found == (continuous, batch, delay)


def test_continuous_batches_with_several_workers_are_refused_with_the_reason_and_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"requires workers: 1, found 2: .* serve this model from more containers, or set"
    ):
        NodeSettings(batching="continuous", workers=2)
