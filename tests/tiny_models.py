"""Small models with random weights, for tests of how models are run; what they say means nothing, but is always the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seeding.samples.tokenizer import sentences, write_tokenizer

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


def make_classifier(folder: Path, labels: Sequence[str]) -> Path:
    """A BERT with a head of these labels; one label makes a cross-encoder."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = _write_pair_tokenizer(folder)
    torch.manual_seed(12)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=128, pad_token_id=0, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():  # else all scores are nearly equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    return folder


def _write_pair_tokenizer(folder: Path) -> int:
    """BERT's way with pairs: [CLS] a [SEP] b [SEP], the second half of another type. Returns the size of its vocabulary."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(sentences(), trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return int(tokenizer.get_vocab_size())
