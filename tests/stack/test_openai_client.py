"""The real `openai` package against a real agent: people's programs work by changing the URL, the key and the model's name."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from seeding.samples import KNOWN, MEANING, MORE_KNOWN

from tests.agent_process import AgentProcess, running_agent
from tests.releases import publish
from tests.services import running_minio
from weightless.release import Release

KEY = "a key for tests"
KNOWN_FALCON = KNOWN["falcon-tiny"]
ECHOING = "{{ messages[-1]['content'] }}"  # what a model that continues sentences can be talked to with
SAY: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Finish the sentence."},
    {"role": "user", "content": KNOWN_FALCON.prompt},
]


@pytest.fixture(scope="module")
def releases() -> dict[str, Release]:
    return {}


@pytest.fixture(scope="module")
def agent(
    samples: Path, releases: dict[str, Release], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    """An agent with a key: falcon-tiny as it is, the same with a chat template, and minilm."""
    folder = tmp_path_factory.mktemp("openai")
    with running_minio(folder / "minio") as minio:
        minio.clean()
        releases["falcon-tiny"] = publish(minio, "falcon-tiny", samples / "falcon-tiny")
        publish(minio, "falcon-chat", samples / "falcon-tiny", chat_template=ECHOING)
        publish(minio, "minilm", samples / "minilm", task="embeddings")
        with running_agent(folder, minio, API_KEY=KEY) as process:
            process.wait_healthy()
            yield process


@pytest.fixture(scope="module")
def client(agent: AgentProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{agent.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


# ---- models


def test_models_are_those_that_are_served(client: OpenAI, releases: dict[str, Release]) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"falcon-tiny", "falcon-chat", "minilm"}
    one = client.models.retrieve("falcon-tiny")
    assert one == models["falcon-tiny"]
    assert one.to_dict()["digest"] == releases["falcon-tiny"].digest
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("falcon-8b")


# ---- completions


def test_a_completion_is_the_sentence_with_its_counts(client: OpenAI) -> None:
    answer = client.completions.create(model="falcon-tiny", prompt=KNOWN_FALCON.prompt, temperature=0, max_tokens=64)
    assert answer.choices[0].text == KNOWN_FALCON.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 1
    assert 1 < answer.usage.completion_tokens <= 64
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_completion_is_cut_where_it_was_asked_to_be(client: OpenAI) -> None:
    short = client.completions.create(
        model="falcon-tiny/v1", prompt=KNOWN_FALCON.prompt, temperature=0, max_tokens=2, echo=True
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    assert KNOWN_FALCON.sentence.startswith(short.choices[0].text)
    assert len(short.choices[0].text) > len(KNOWN_FALCON.prompt)
    stopped = client.completions.create(
        model="falcon-tiny", prompt=KNOWN_FALCON.prompt, temperature=0, max_tokens=64, stop=[" bucket"]
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (" live in a", "stop")


def test_several_prompts_have_a_choice_each(client: OpenAI) -> None:
    known = [KNOWN_FALCON, *MORE_KNOWN]
    answer = client.completions.create(
        model="falcon-tiny", prompt=[one.prompt for one in known], temperature=0, max_tokens=64
    )
    assert [choice.text for choice in answer.choices] == [one.answer for one in known]
    assert [choice.index for choice in answer.choices] == list(range(len(known)))


def test_a_streamed_completion_is_the_same_text_in_pieces(client: OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="falcon-tiny",
            prompt=KNOWN_FALCON.prompt,
            temperature=0,
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    texts = [chunk.choices[0].text for chunk in pieces]
    assert "".join(texts) == KNOWN_FALCON.answer
    assert sum(bool(text) for text in texts) > 2, "the answer came in one"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    whole = client.completions.create(model="falcon-tiny", prompt=KNOWN_FALCON.prompt, temperature=0, max_tokens=64)
    assert last.usage == whole.usage


def test_a_seed_decides_what_is_drawn(client: OpenAI) -> None:
    def drawn(seed: int) -> str:
        answer = client.completions.create(
            model="falcon-tiny", prompt="x", temperature=2, seed=seed, max_tokens=24, extra_body={"top_k": 0}
        )
        return answer.choices[0].text

    first = drawn(-1)
    assert drawn(-1) == first
    assert {drawn(seed) for seed in (2, 3, 4)} != {first}


# ---- chat


def test_a_chat_goes_through_the_releases_template(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="falcon-chat", messages=SAY, temperature=0)
    assert answer.choices[0].message.content == KNOWN_FALCON.answer
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    again: list[ChatCompletionMessageParam] = [
        *SAY,
        answer.choices[0].message.model_dump(),  # type: ignore[list-item]  # what programs append to go on talking
        {"role": "user", "content": [{"type": "text", "text": MORE_KNOWN[0].prompt}]},
    ]
    second = client.chat.completions.create(model="falcon-chat", messages=again, temperature=0)
    assert second.choices[0].message.content == MORE_KNOWN[0].answer


def test_a_chat_without_a_template_continues_the_plain_prompt(client: OpenAI) -> None:
    chat = client.chat.completions.create(model="falcon-tiny", messages=SAY, temperature=0, max_tokens=8)
    plain = f"system: Finish the sentence.\nuser: {KNOWN_FALCON.prompt}\nassistant:"
    text = client.completions.create(model="falcon-tiny", prompt=plain, temperature=0, max_tokens=8, stop="\nuser:")
    assert chat.choices[0].message.content == text.choices[0].text
    assert chat.usage == text.usage


def test_a_streamed_chat_is_the_same_message_in_pieces(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="falcon-chat", messages=SAY, temperature=0, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == KNOWN_FALCON.answer
    assert sum(bool(piece) for piece in pieces) > 2, "the answer came in one"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_clients_own_collector_of_streams_works(client: OpenAI) -> None:
    with client.chat.completions.stream(model="falcon-chat", messages=SAY, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == KNOWN_FALCON.answer


# ---- embeddings


def test_embeddings_know_what_sentences_mean(client: OpenAI) -> None:
    known = MEANING["minilm"]
    answer = client.embeddings.create(model="minilm", input=[known.anchor, known.near, known.far])
    anchor, near, far = (one.embedding for one in answer.data)
    assert cosine(anchor, near) > cosine(anchor, far) + 0.3
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15


def test_both_encodings_hold_the_same_numbers(client: OpenAI) -> None:
    packed = client.embeddings.create(model="minilm", input="Hello").data[0].embedding  # the client asks for base64
    plain = client.embeddings.create(model="minilm", input="Hello", encoding_format="float").data[0].embedding
    assert len(plain) == 384
    assert packed == pytest.approx(plain, abs=1e-7)

    many = client.embeddings.create(model="minilm", input=["Hello"] * 2048)  # as many as OpenAI takes at once
    assert many.data[2047].embedding == pytest.approx(plain, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="float or base64") as refused:
        client.embeddings.create(model="minilm", input="x", encoding_format="int8")  # type: ignore[arg-type]
    assert refused.value.param == "encoding_format"


# ---- errors


def test_errors_have_the_classes_that_programs_catch(client: OpenAI, agent: AgentProcess) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="falcon-8b", prompt="x")
    assert unknown.value.code == "model_not_found"
    assert "falcon-tiny, minilm" in str(unknown.value)
    with pytest.raises(openai.NotFoundError, match="required GET /v1/models or POST"):
        client.moderations.create(input="x")
    with pytest.raises(openai.BadRequestError) as several:
        client.chat.completions.create(model="falcon-tiny", messages=SAY, n=2)
    assert several.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="required at most") as long:  # said by the worker
        client.chat.completions.create(model="falcon-tiny", messages=SAY, max_completion_tokens=100_000)
    assert long.value.param == "max_completion_tokens"
    with pytest.raises(openai.BadRequestError, match="is for embeddings"):
        client.completions.create(model="minilm", prompt="x")
    with pytest.raises(openai.BadRequestError, match="is for text-generation"):
        client.embeddings.create(model="falcon-tiny", input="x")
    with OpenAI(base_url=f"{agent.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="falcon-tiny/v7", prompt="x")


def test_a_stream_that_the_worker_refuses_is_an_error_and_no_stream(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="falcon-tiny", prompt="", temperature=0, stream=True)
    assert refused.value.param == "prompt"


def test_requests_are_counted_like_predictions(client: OpenAI, agent: AgentProcess) -> None:
    client.completions.create(model="falcon-tiny", prompt="x", max_tokens=1)
    text = agent.call("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"}).raw.decode()
    assert 'weightless_requests_total{code="200",model="falcon-tiny",release="v1"}' in text
