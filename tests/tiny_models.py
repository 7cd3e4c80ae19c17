"""Small models with random weights, for tests of how models are run; what they say means nothing, but is always the same."""

from pathlib import Path
from typing import Any

from seeding.samples.tokenizer import write_tokenizer

VOCABULARY = 320


def make_causal(folder: Path, kind: str, dtype: str = "float32", **more: Any) -> Path:
    """A causal language model: `kind` is "falcon" (multi-query, parallel attention), "falcon-alibi" or "llama" (grouped-query)."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    _, end = write_tokenizer(folder, learned=VOCABULARY)
    shared = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "max_position_embeddings": 128} | more
    torch.manual_seed(11)
    if kind == "llama":
        config = transformers.LlamaConfig(**({"intermediate_size": 128, "num_key_value_heads": 2} | shared))
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.FalconConfig(alibi=kind == "falcon-alibi", **shared)
        model = transformers.FalconForCausalLM(config)
    with (
        torch.no_grad()
    ):  # random logits of the default 0.02 are nearly equal: spread them, so that greedy choices are clear
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.generation_config.eos_token_id = end
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
