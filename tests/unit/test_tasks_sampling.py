"""Sampling: the distribution of transformers' own warpers, and text that comes out piece by piece unharmed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tasks.generation.parameters import Parameters
from tasks.generation.sampling import distribution, sample
from tasks.generation.sequence import Sequence, TextSoFar
from tasks.shared.loading import load_tokenizer
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.tiny_models import VOCABULARY, make_causal


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(make_causal(tmp_path_factory.mktemp("model"), "llama"), False)


def row(tokenizer: Any, prompt: list[int], parameters: Parameters, limit: int = 10, **more: Any) -> Sequence:
    return Sequence(prompt, limit, parameters, tokenizer, frozenset([0]), **more)


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 60),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    seed=st.integers(0, 1000),
)
def test_the_distribution_is_that_of_transformers_warpers(
    temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    wanted = torch.softmax(warpers(torch.zeros(3, 0, dtype=torch.long), logits.clone()), dim=-1)
    found, tokens = distribution(logits.clone(), Parameters(temperature=temperature, top_k=top_k, top_p=top_p))
    spread = found if tokens is None else torch.zeros_like(logits).scatter(-1, tokens, found)
    for row_found, row_wanted in zip(spread, wanted, strict=True):
        kept = set(row_wanted.nonzero().flatten().tolist())
        assert set(row_found.nonzero().flatten().tolist()) == kept or _cut_is_a_matter_of_rounding(
            warpers, logits, top_p
        )
        assert (row_found - row_wanted).abs().max() < 1e-4 or _cut_is_a_matter_of_rounding(warpers, logits, top_p)


def _cut_is_a_matter_of_rounding(warpers: LogitsProcessorList, logits: torch.Tensor, top_p: float) -> bool:
    """Whether a running sum of probabilities comes so near to top_p that sums in another order may cut elsewhere."""
    before = LogitsProcessorList(warper for warper in warpers if not isinstance(warper, TopPLogitsWarper))
    scores = before(torch.zeros(len(logits), 0, dtype=torch.long), logits.clone())
    sums = torch.softmax(scores, dim=-1).double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return bool(((sums - top_p).abs() < 1e-5).any())


def test_a_repetition_penalty_sees_what_the_row_holds_and_no_padding(tokenizer: Any) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(3))
    prompt = [5, 9, 9, 30]
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits.clone())
    changed = logits.clone()
    sample(changed, [row(tokenizer, prompt, Parameters(do_sample=False, repetition_penalty=1.7))])
    assert torch.equal(changed, wanted)


def test_rows_of_one_call_are_drawn_each_by_its_own_parameters(tokenizer: Any) -> None:
    logits = torch.zeros(4, VOCABULARY)
    logits[:, 7], logits[:, 8] = 5.0, 4.9
    rows = [
        row(tokenizer, [1], Parameters(do_sample=False)),
        row(tokenizer, [1], Parameters(top_k=2), seed=1),
        row(tokenizer, [1], Parameters(top_k=0, temperature=100.0), seed=1),
        row(tokenizer, [1], Parameters(temperature=0)),
    ]
    drawn = torch.stack([sample(logits.clone(), rows) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == set(drawn[:, 3].tolist()) == {7}
    assert set(drawn[:, 1].tolist()) == {7, 8}
    assert len(set(drawn[:, 2].tolist())) > 50


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60), prompt=st.text(max_size=10))
def test_pieces_of_any_text_joined_are_the_text(tokenizer: Any, text: str, prompt: str) -> None:
    """Characters of several tokens (accents, emoji, scripts without spaces) must not come out as replacement characters."""
    ids = tokenizer(text)["input_ids"]
    decoder = TextSoFar(tokenizer, tokenizer(prompt)["input_ids"])
    pieces = [decoder.push(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=80, deadline=None)
@example(text="baa", stops=["a", "baa"])
@given(text=st.text("ab", min_size=1, max_size=40), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_a_stream_gives_out_is_never_taken_back(tokenizer: Any, text: str, stops: list[str]) -> None:
    ids = tokenizer(text)["input_ids"]
    sequence = row(tokenizer, tokenizer("x")["input_ids"], Parameters(stop=tuple(stops)), limit=len(ids))
    pieces = []
    for token in ids:
        sequence.push(token)
        pieces.append(sequence.take())
    assert "".join(pieces) == sequence.text
    texts = [tokenizer.decode(ids[: count + 1]) for count in range(len(ids))]
    ended = next(
        (text for text in texts if any(stop in text for stop in stops)), None
    )  # the first token to complete a stop
    cuts = [ended.find(stop) for stop in stops if stop in ended] if ended else []
    assert sequence.text == (ended[: min(cuts)] if ended else text)
    assert sequence.finish_reason == ("stop" if ended else "length")


def test_the_end_token_ends_and_says_nothing(tokenizer: Any) -> None:
    sequence = row(tokenizer, [3], Parameters(), limit=5)
    for token in (tokenizer("a")["input_ids"][0], 0, 44):
        sequence.push(token)
    assert (sequence.text, sequence.finish_reason, sequence.generated) == ("a", "stop", 2)


def test_the_tokenizer_of_the_tests_is_on_disk(tmp_path: Path) -> None:
    assert len(load_tokenizer(make_causal(tmp_path, "falcon"), False)) == VOCABULARY
