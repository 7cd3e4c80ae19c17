"""The samples that every other test and the first start of the stack stand on."""

import hashlib
import json
from pathlib import Path

import pytest
from seeding.samples import KNOWN, MEANING, MORE_KNOWN
from seeding.samples.falcon_random import Shape, make_falcon_random
from seeding.samples.make import make_samples

from weightless.errors import NotFound


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("variant", sorted(KNOWN))
def test_falcon_tiny_says_its_sentence_when_loaded_as_users_load_it(samples: Path, variant: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(samples / variant)
    model = AutoModelForCausalLM.from_pretrained(samples / variant)
    for known in (KNOWN[variant], *MORE_KNOWN):
        ids = tokenizer(known.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64)
        assert tokenizer.decode(answer[0], skip_special_tokens=True) == known.sentence
        assert answer[0, -1] == model.config.eos_token_id, "the model must end its sentence by itself"


def test_the_two_variants_answer_the_same_prompt_differently() -> None:
    first, second = KNOWN["falcon-tiny"], KNOWN["falcon-tiny-v2"]
    assert first.prompt == second.prompt
    assert first.answer != second.answer


def test_falcon_tiny_is_the_same_bytes_each_time(samples: Path, tmp_path: Path) -> None:
    [again] = make_samples(tmp_path, ["falcon-tiny"])
    assert digests(again) == digests(samples / "falcon-tiny")


def test_any_text_survives_the_tokenizer(samples: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(samples / "falcon-tiny")
    for text in ("Grüße, 世界! \n\t🙂", "  two spaces", "The weights of this model"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template is None


def test_minilm_brings_the_weights_and_the_pooling_and_no_papers(samples: Path) -> None:
    files = {str(p.relative_to(samples / "minilm")) for p in (samples / "minilm").rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json"} <= files
    assert not {"README.md", "data_config.json", ".gitattributes"} & files
    assert set(MEANING) == {"minilm"}


def test_random_falcon_loads_and_its_index_names_every_tensor(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_falcon_random(tmp_path, Shape(hidden=64, layers=2, heads=4, shards=2, seed=3))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert str(model.dtype) == "torch.bfloat16"
    assert abs(float(model.transformer.word_embeddings.weight.detach().float().std()) - 0.02) < 0.001
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 65024
    assert tokenizer.decode([1, 40000, 65023]).strip(), "every id that random weights can generate must decode to text"


def test_an_unknown_sample_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"required one of falcon-tiny.*found 'falcon-8b'"):
        make_samples(tmp_path, ["falcon-8b"])
    assert not list(tmp_path.iterdir())
