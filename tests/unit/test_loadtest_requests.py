"""The load test's bodies, options, settings and stream reader: what it asks, what it takes for an answer, what it refuses."""

import io
import json
import re
from argparse import Namespace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from loadtest import bodies, sse
from loadtest.errors import InvalidOption
from loadtest.options import Options, chosen, to_start
from loadtest.settings import LoadtestSettings
from weightless.errors import SettingsError

FORM: dict[str, Any] = {
    "model": "auto", "embedding_model": "", "prompt_words": "16", "answer_tokens": "16-64", "arrival_rate": "0.5",
    "slo_ms": "2000", "warmup_seconds": "0", "cold_start_model": "auto", "cold_start_release": "",
    "cold_start_variants": "slim-cold,mar", "cold_start_samples": "5",
}  # fmt: skip


def test_generation_bodies_have_the_asked_lengths() -> None:
    body = bodies.generation(16, 32, Random(1))
    assert len(body["input"].split()) == 16
    assert body["parameters"] == {"max_new_tokens": 32, "do_sample": False}
    assert body["details"] and not body["stream"] and bodies.generation(1, 1, Random(1), stream=True)["stream"]
    assert len(bodies.prompt(1000, Random(1)).split()) == 1000
    assert len({bodies.prompt(16, Random(seed)) for seed in range(50)}) > 10, "prompts must differ, or a cache answers"
    assert len(set(bodies.embedding(Random(1))["input"])) == 2


def test_answers_of_generation() -> None:
    good = {"generated_text": "a", "generated_tokens": 7}
    assert bodies.generated([good]) == bodies.generated(good) == 7
    wrongs: list[Any] = [
        [],
        {},
        "text",
        [{"generated_text": 1}],
        [{"generated_text": "a"}],
        [good | {"generated_tokens": 0}],
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="required"):
            bodies.generated(wrong)


def test_answers_of_embeddings() -> None:
    bodies.check_embeddings([{"embedding": [0.1, 2]}, {"embedding": [0.3, 4]}], 2)
    wrong: list[Any] = [[], {}, [{"embedding": [1]}], [{"embedding": [1]}, {"embedding": [1, 2]}], [{"embedding": []}] * 2,
                        [{"embedding": ["a"]}] * 2, [{}, {}]]  # fmt: skip
    for answer in wrong:
        with pytest.raises(ValueError, match="required"):
            bodies.check_embeddings(answer, 2)


class Lines:
    """A body for `sse.events`, as geventhttpclient's response gives it."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readline(self, sep: bytes = b"\r\n") -> bytes:
        assert sep == b"\n"
        return self._body.readline()


def test_events_of_a_stream() -> None:
    body = b': hello\r\ndata: {"token": "a"}\n\nevent: x\ndata:{"token": "b"}\r\n\r\ndata: [DONE]\n\n'
    assert list(sse.events(Lines(body))) == [{"token": "a"}, {"token": "b"}]
    for wrong in (b"data: {\n", b"data: 3\n"):
        with pytest.raises(ValueError):
            list(sse.events(Lines(wrong)))


def test_the_form_is_read() -> None:
    options = Options.read(FORM)
    assert (options.model, options.embedding_model, options.prompt_words, options.answer_tokens) == (
        "auto",
        "auto",
        16,
        (16, 64),
    )
    assert [arm.name for arm in options.cold_start_variants] == ["slim-cold", "mar"]
    assert options.cold_start_release is None
    assert Options.read(FORM | {"cold_start_release": "auto"}).cold_start_release is None
    assert Options.read(FORM | {"cold_start_release": "v2"}).cold_start_release == "v2"
    again = Options.read(Namespace(**FORM | {"answer_tokens": "8", "cold_start_variants": ["tgz", "tgz"]}))
    assert again.answer_tokens == (8, 8) and [arm.name for arm in again.cold_start_variants] == ["tgz"]


PUBLISHED = {"falcon-1g": ["v1"], "falcon-tiny": ["v2", "v1"]}


@pytest.mark.parametrize(
    ("model", "release", "published", "started"),
    [
        ("auto", "auto", PUBLISHED, ("falcon-1g", None)),
        ("auto", "v1", PUBLISHED, ("falcon-1g", "v1")),
        ("auto", "falcon-tiny: v2", PUBLISHED, ("falcon-tiny", "v2")),
        ("falcon-tiny", "falcon-tiny: v2", PUBLISHED, ("falcon-tiny", "v2")),
        ("falcon-tiny", "v2", PUBLISHED, ("falcon-tiny", "v2")),
        ("auto", "v2", {"falcon-tiny": ["v2"]}, ("falcon-tiny", "v2")),
        ("falcon-7b", "v9", {}, ("falcon-7b", "v9")),  # the agent could not tell; it will
    ],
)
def test_the_model_and_release_of_cold_starts(
    model: str, release: str, published: dict[str, list[str]], started: tuple[str, str | None]
) -> None:
    asked = Options.read(FORM | {"cold_start_model": model, "cold_start_release": release})
    assert to_start(asked, published) == started


@pytest.mark.parametrize(
    ("model", "release", "published", "found"),
    [
        ("falcon-1g", "v2", PUBLISHED, "a release of falcon-1g (v1), found 'v2'"),
        ("auto", "v2", PUBLISHED, "a release of falcon-1g (v1), found 'v2'"),
        ("falcon-1g", "falcon-tiny: v1", PUBLISHED, "a release of falcon-1g (v1), found 'falcon-tiny: v1'"),
        ("falcon-1g", "falcon-tiny: v1", {}, "a release of falcon-1g, found 'falcon-tiny: v1'"),
        ("auto", "falcon-tiny: v3", PUBLISHED, "a release of falcon-tiny (v2, v1), found 'falcon-tiny: v3'"),
        ("falcon-7b", "auto", PUBLISHED, "one of falcon-1g, falcon-tiny, found 'falcon-7b'"),
    ],
)
def test_a_release_that_the_model_has_not_is_refused(
    model: str, release: str, published: dict[str, list[str]], found: str
) -> None:
    asked = Options.read(FORM | {"cold_start_model": model, "cold_start_release": release})
    with pytest.raises(InvalidOption, match=re.escape(f"required {found}")):
        to_start(asked, published)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("prompt_words", "0", "from 1 to 10000, found '0'"),
        ("prompt_words", "1.5", "a whole number"),
        ("prompt_words", "many", "found 'many'"),
        ("answer_tokens", "64-16", "found '64-16'"),
        ("answer_tokens", "0", "such as 16-64"),
        ("arrival_rate", "-1", "from 0 to 1000"),
        ("arrival_rate", "nan", "found 'nan'"),
        ("slo_ms", "", "found ''"),
        (
            "cold_start_variants",
            "slim",
            "worker, worker-stock; found 'slim'",
        ),
        ("cold_start_variants", [], "found none"),
        ("cold_start_samples", "0", "from 1 to 1000"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, found: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{field}: required ") as error:
        Options.read(FORM | {field: value})
    assert found in str(error.value)


def test_the_model_of_a_field() -> None:
    ready = ["falcon-7b", "falcon-tiny"]
    assert chosen("auto", ready, "text-generation", "u") == "falcon-7b"
    assert chosen("falcon-tiny", ready, "text-generation", "u") == "falcon-tiny"
    with pytest.raises(InvalidOption, match=r"model 'x' to be served .*found falcon-7b, falcon-tiny at u"):
        chosen("x", ready, "text-generation", "u")
    with pytest.raises(InvalidOption, match="a served model of task embeddings, found none"):
        chosen("auto", [], "embeddings", "u")


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AGENT_URL", "API_KEY", "API_KEY_FILE", "LOCUST_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert LoadtestSettings.load().url == "http://127.0.0.1:8080" and LoadtestSettings.load().headers() == {}
    key = tmp_path / "key"
    key.write_text("secret\n")
    monkeypatch.setenv("API_KEY_FILE", str(key))
    assert LoadtestSettings.load().headers() == {"Authorization": "Bearer secret"}
    monkeypatch.setenv("API_KEY", "other")  # goes before the file, as with the agent and the commands
    assert "other" not in repr(LoadtestSettings.load())
    assert LoadtestSettings.load().headers() == {"Authorization": "Bearer other"}


@pytest.mark.parametrize(("name", "value"), [("AGENT_URL", "here"), ("LOCUST_PORT", "0"), ("LOCUST_PORT", "eighty")])
def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        LoadtestSettings.load()


def test_a_missing_key_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"API_KEY_FILE: required a readable file .*none"):
        LoadtestSettings.load().headers()


def test_an_event_as_json_is_what_it_was() -> None:
    event = {"token": 'é\n"quoted"'}
    assert list(sse.events(Lines(b"data: " + json.dumps(event).encode() + b"\n\n"))) == [event]
