"""Falcons with random weights for measuring: the shape of the real ones, written one tensor at a time.

`falcon-1g` has 0.96 GB in two shards, `falcon-4g` 4.02 GB in four; `falcon-7b-shape` is Falcon-7B's own shape, 13.8 GB in
seven shards. Peak memory is that of the largest tensor (0.6 GB for the last), not of a shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seeding.samples.tokenizer import write_tokenizer

VOCABULARY = 65024
LEARNED = 1024
BYTES_PER_WEIGHT = 2  # bfloat16


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    shards: int
    seed: int


SHAPES = {
    "falcon-1g": Shape(hidden=1536, layers=16, heads=24, shards=2, seed=1),
    "falcon-4g": Shape(hidden=2560, layers=28, heads=40, shards=4, seed=3),
    "falcon-7b-shape": Shape(hidden=4544, layers=32, heads=71, shards=7, seed=2),
}


def make_falcon_random(folder: Path, shape: Shape) -> None:
    """Write a model of that shape into `folder`, which must be empty."""
    import torch
    from transformers import FalconConfig, FalconForCausalLM

    _, end = write_tokenizer(folder, learned=LEARNED, total=VOCABULARY)
    config = FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        dtype="bfloat16",
        architectures=["FalconForCausalLM"],
    )
    with torch.device("meta"):
        model = FalconForCausalLM(config)
    # The output embedding is the input embedding (tied): a checkpoint holds it once.
    tensors = {key: tuple(value.shape) for key, value in model.named_parameters() if key != "lm_head.weight"}
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)

    generator = torch.Generator().manual_seed(shape.seed)
    weight_map: dict[str, str] = {}
    groups = list(_split(tensors, shape.shards))
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_shard(folder / file, group, generator)
        weight_map |= dict.fromkeys(group, file)
    total = sum(_bytes(size) for size in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(size: tuple[int, ...]) -> int:
    return math.prod(size) * BYTES_PER_WEIGHT


def _split(tensors: dict[str, tuple[int, ...]], shards: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Cut the tensors, in order, into `shards` groups of nearly equal bytes."""
    total = sum(_bytes(size) for size in tensors.values())
    group: dict[str, tuple[int, ...]] = {}
    done, number = 0, 1
    for key, size in tensors.items():
        group[key] = size
        done += _bytes(size)
        if done >= total * number / shards and number < shards:
            yield group
            group, number = {}, number + 1
    yield group


def _write_shard(path: Path, group: dict[str, tuple[int, ...]], generator: object) -> None:
    """Write the safetensors format by hand: the library needs all tensors of a shard in memory at once."""
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, size in group.items():
        header[key] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, offset + _bytes(size)]}
        offset += _bytes(size)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for key, size in group.items():
            weights = torch.empty(size, dtype=torch.bfloat16)
            if len(size) == 1:  # layer norms: scale one, shift zero
                weights.fill_(1.0 if key.endswith("weight") else 0.0)
            else:
                weights.normal_(std=0.02, generator=generator)  # type: ignore[arg-type]
            file.write(weights.view(torch.uint8).numpy().data)
