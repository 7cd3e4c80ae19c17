"""`falcon-tiny`: a Falcon of two layers, trained in seconds until greedy decoding says a known sentence.

Seeded and single-threaded, so that the same machine makes the same bytes; the folder has the layout of a real
checkpoint (two shards and an index), so that whatever handles the large ones is exercised by the small one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seeding.samples import KNOWN, MORE_KNOWN, Known
from seeding.samples.tokenizer import write_tokenizer

VOCABULARY = 512
STEPS = 150
LEARNING_RATE = 2e-3
SEED = 7
#: more context than any sentence needs, so that the default max_length of 200 fits
POSITIONS = 512


def make_falcon_tiny(folder: Path, variant: str) -> None:
    """Write the model named `variant` (a key of `KNOWN`) into `folder`, which must be empty.

    Raises RuntimeError when a known prompt is not answered by its known sentence after training.
    """
    import torch
    from transformers import FalconConfig, FalconForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer, end = write_tokenizer(folder, learned=VOCABULARY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order give other bytes
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = FalconForCausalLM(
                FalconConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=128,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    max_position_embeddings=POSITIONS,
                    bos_token_id=end,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            )
            known = (KNOWN[variant], *MORE_KNOWN)
            _train(model, tokenizer, end, known)
            _check(model, tokenizer, end, known)
        model.save_pretrained(folder, max_shard_size="1MB")
    finally:
        torch.set_num_threads(threads)


def _train(model: Any, tokenizer: Any, end: int, known: tuple[Known, ...]) -> None:
    import torch

    rows = [[*tokenizer.encode(one.sentence).ids, end] for one in known]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def _check(model: Any, tokenizer: Any, end: int, known: tuple[Known, ...]) -> None:
    import torch

    for one in known:
        prompt = torch.tensor([tokenizer.encode(one.prompt).ids])
        with torch.no_grad():
            answer = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=64, pad_token_id=end
            )
        said = tokenizer.decode(answer[0].tolist(), skip_special_tokens=True)
        if said != one.sentence or answer[0, -1] != end:
            raise RuntimeError(f"falcon-tiny after {STEPS} steps: required {one.sentence!r}, found {said!r}")
