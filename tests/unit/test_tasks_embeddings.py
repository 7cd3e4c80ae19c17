"""Embeddings with the real all-MiniLM-L6-v2: transformers' own numbers, and sentences that mean alike lie near each other."""

import base64
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from seeding.samples.minilm import make_minilm
from tasks import load_task
from tasks.embedding.pooling import Recipe, pool, read_recipe
from tasks.embeddings import Embeddings
from tasks.shared.contract import Node
from tasks.shared.errors import InvalidRequest
from transformers import AutoModel, AutoTokenizer

TEXT = "the cat sat on a mat while banks raised interest rates and kittens slept near old garden walls"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm")
    make_minilm(path)
    return path


@pytest.fixture(scope="module")
def task(folder: Path) -> Embeddings:
    loaded = load_task("embeddings", folder, {"task": "embeddings"}, Node())
    assert isinstance(loaded, Embeddings)
    return loaded


def ask(task: Embeddings, *bodies: dict[str, Any]) -> list[Any]:
    return list(task.run([task.parse(body) for body in bodies], lambda events: None))


def vectors(task: Embeddings, texts: list[str]) -> numpy.ndarray:
    return numpy.array([entry["embedding"] for entry in ask(task, {"input": texts})[0]])


def reference(folder: Path, text: str) -> numpy.ndarray:
    """As the model's card does it: transformers alone, one text at a time, mean over tokens, normalised."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state[0]
    mean = hidden.mean(dim=0)
    vector: numpy.ndarray = (mean / mean.norm()).numpy()
    return vector


def test_numbers_are_those_of_transformers_in_any_batch(task: Embeddings, folder: Path) -> None:
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=length)) for length in (1, 3, 8, 20, 90, 400)] + ["", "Ünïcödé 猫 🐈"]
    found = vectors(task, texts)
    wanted = numpy.array([reference(folder, text) for text in texts])
    assert abs(found - wanted).max() < 1e-5
    assert found.shape == (8, 384)


def test_sentences_that_mean_alike_are_nearest_neighbours(task: Embeddings) -> None:
    pairs = [
        ("The cat sits on the mat.", "A kitten is resting on a rug."),
        ("The central bank raised its interest rate.", "Borrowing money became more expensive."),
        ("How do I reset my password?", "I forgot my login credentials."),
        ("It will rain all day tomorrow.", "The forecast says wet weather."),
    ]
    found = vectors(task, [text for pair in pairs for text in pair])
    nearness = found @ found.T - 2 * numpy.eye(8)
    assert nearness.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_requests_of_one_batch_get_their_own_vectors_in_order(task: Embeddings) -> None:
    texts = ["a", "b c", "the cat sat", "banks", "kittens slept near old walls"]
    alone = vectors(task, texts)
    single, several, last = ask(
        task, {"input": texts[0]}, {"input": texts[1:4]}, {"input": [texts[4]], "details": True}
    )
    together = numpy.array([single["embedding"], *(entry["embedding"] for entry in several), last[0]["embedding"]])
    assert abs(together - alone).max() < 1e-6
    assert last[0]["prompt_tokens"] == len(task.parse({"input": texts[4]}).ids[0]) > 5


def test_vectors_in_base64_are_the_same_numbers(task: Embeddings) -> None:
    plain, packed = ask(task, {"input": TEXT}, {"input": TEXT, "parameters": {"encoding_format": "base64"}})
    numbers = numpy.frombuffer(base64.b64decode(packed["embedding"]), dtype="<f4")
    assert numpy.abs(numbers - plain["embedding"]).max() < 1e-7


def test_long_texts_are_cut_where_the_models_own_config_says_or_the_node(task: Embeddings, folder: Path) -> None:
    long = " ".join(["cat"] * 254)
    found = vectors(task, [long, long + " bank bank bank"])
    assert abs(found[0] - found[1]).max() < 1e-6
    assert task.facts["max_tokens"] == 256
    shorter: Any = load_task("embeddings", folder, {}, Node(max_input_tokens=8))
    assert shorter.facts["max_tokens"] == 8


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "parameters": {"top_k": 1}}, "parameters.top_k"),
        ({"input": "a", "parameters": {"encoding_format": "int8"}}, "parameters.encoding_format"),
        ({"input": ["a"] * 2049}, "input"),
        ({}, "input"),
    ],
)
def test_what_embeddings_cannot_do_is_refused(task: Embeddings, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        task.parse(body)
    assert refused.value.field == field


def test_a_batch_that_does_not_fit_is_done_in_parts(task: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "b c", "the cat sat on the mat", "banks", "kittens"]
    alone, forward = vectors(task, texts), task._forward

    def tight(batch: list[list[int]]) -> numpy.ndarray:
        if len(batch) > 1 or len(batch[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(task, "_forward", tight)
    answers = ask(task, *({"input": text} for text in texts))
    assert answers[2].kind == "out_of_memory"
    fitting = [0, 1, 3, 4]
    assert abs(numpy.array([answers[index]["embedding"] for index in fitting]) - alone[fitting]).max() < 1e-6


def test_each_pooling_mode_does_what_its_name_says() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    wanted = {
        "cls": [[1.0, 2.0], [1.0, 1.0]],
        "lasttoken": [[3.0, -4.0], [3.0, 9.0]],
        "max": [[3.0, 2.0], [3.0, 9.0]],
        "mean": [[2.0, -1.0], [2.0, 4.0]],
        "mean_sqrt_len_tokens": [[4 / 2**0.5, -2 / 2**0.5], [6 / 3**0.5, 12 / 3**0.5]],
        "weightedmean": [[7 / 3, -2.0], [14 / 6, 32 / 6]],
    }
    for mode, vectors_ in wanted.items():
        assert torch.allclose(pool(hidden, mask, Recipe(modes=(mode,))), torch.tensor(vectors_)), mode
    joined = pool(hidden, mask, Recipe(modes=("cls", "mean"), normalize=True))
    assert joined.shape == (2, 4)
    assert torch.allclose(joined.norm(dim=-1), torch.ones(2))


def write_recipe(folder: Path, kinds: list[str], pooling: dict[str, Any]) -> None:
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling" if kind == "Pooling" else ""}
        for kind in kinds
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_the_recipe_is_read_from_the_folder(folder: Path, tmp_path: Path) -> None:
    assert read_recipe(folder) == Recipe(modes=("mean",), normalize=True, max_tokens=256)
    assert read_recipe(tmp_path) == Recipe(modes=("mean",), normalize=False), (
        "a folder without one: mean, not normalised"
    )
    write_recipe(
        tmp_path, ["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    assert read_recipe(tmp_path) == Recipe(modes=("cls",))
    write_recipe(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": ["lasttoken", "mean"]})
    assert read_recipe(tmp_path).modes == ("lasttoken", "mean")


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "found Transformer, Pooling, Dense"),
        (["Transformer"], {}, "required one Transformer, one Pooling"),
        (["Transformer", "Pooling"], {"pooling_mode": "magic"}, r"found \['magic'\]"),
        (["Transformer", "Pooling"], {}, "required a pooling mode"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_an_error(
    tmp_path: Path, kinds: list[str], pooling: dict[str, Any], message: str
) -> None:
    """Vectors made in another way than the model was trained for are wrong, and look right."""
    write_recipe(tmp_path, kinds, pooling)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path)


def test_the_task_itself_imports_no_scipy_and_no_sentence_transformers() -> None:
    """They cost half a second of every start. transformers imports scipy where it is installed; we must not be the reason."""
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; import transformers, transformers.loss.loss_utils; before = set(sys.modules); import tasks.embeddings;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "assert not new & {'scipy', 'sklearn', 'sentence_transformers'}, new"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={"PYTHONPATH": f"{root / 'handler'}:{root}"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
