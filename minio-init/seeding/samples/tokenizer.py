"""A byte-level BPE tokenizer small enough to train in a moment; it can encode any text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seeding.samples import KNOWN, MORE_KNOWN

END = "<|endoftext|>"


def sentences() -> list[str]:
    """All sentences the samples know, in a fixed order."""
    return [known.sentence for known in (*KNOWN.values(), *MORE_KNOWN)]


def write_tokenizer(folder: Path, learned: int, total: int | None = None) -> tuple[Tokenizer, int]:
    """Train on the known sentences and write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    `learned` is the size of the trained vocabulary. With `total`, made-up words fill it up to that many entries: they
    are never produced by encoding, but every id that a model with random weights generates decodes to some text.
    Returns the tokenizer and the id of `END`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    if total is not None:
        state = json.loads(tokenizer.to_str())
        entries: dict[str, int] = state["model"]["vocab"]
        for number in range(len(entries), total):
            entries[f"Ġw{number}"] = number
        tokenizer = Tokenizer.from_str(json.dumps(state))
    vocabulary = tokenizer.get_vocab()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=total is None)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {"bos_token": END, "eos_token": END, "pad_token": END})
    return tokenizer, vocabulary[END]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
