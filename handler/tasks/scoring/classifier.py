"""A sequence classifier and its tokenizer: from texts, or pairs of texts, to logits, in batches of like length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from tasks.shared.batches import by_length
from tasks.shared.contract import Node
from tasks.shared.device import place
from tasks.shared.errors import InvalidRequest, RequestError
from tasks.shared.isolation import isolated
from tasks.shared.loading import context_length, dtype_name, load_model, load_tokenizer

Encoded = dict[str, list[int]]
"""`input_ids`, and `token_type_ids` where the model tells two texts apart by them."""


class Classifier:
    """`labels`: the names of the logits, in order. `config`: the model's."""

    def __init__(self, model: Any, tokenizer: Any, node: Node, facts: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.config = model.config
        self.labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        limits = (tokenizer.model_max_length, context_length(model.config), node.max_input_tokens)
        self._max_tokens = int(min(limit for limit in limits if limit is not None))
        self._pads = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        self.facts = dict(facts) | {"max_tokens": self._max_tokens, "labels": len(self.labels)}

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, cut: bool, field: str) -> tuple[Encoded, ...]:
        """Each text, or each text with its pair, as tokens.

        Raises:
            InvalidRequest: naming `field` if one is longer than the model takes and is not to be `cut` to that, or has no token.
        """
        encoded = self._tokenizer(
            list(texts), None if pairs is None else list(pairs), truncation=cut, max_length=self._max_tokens if cut else None,
            return_attention_mask=False,
        )  # fmt: skip
        longest = max(map(len, encoded["input_ids"]))
        if longest > self._max_tokens:
            message = (
                f"required at most {self._max_tokens} tokens, found {longest}; shorten, or set parameters.truncation"
            )
            raise InvalidRequest(field, message, "input_too_long")
        if not all(encoded["input_ids"]):
            raise InvalidRequest(field, "required texts of at least one token, found one of none")
        return tuple({name: encoded[name][row] for name in encoded} for row in range(len(texts)))

    def logits(self, texts: Sequence[Encoded]) -> list[numpy.ndarray | RequestError]:
        """For each text its logits, float64 in the order of the labels, or the error that it alone met."""
        found: dict[int, numpy.ndarray | RequestError] = {}

        def score(indices: Sequence[int]) -> None:
            found.update(zip(indices, self._forward([texts[index] for index in indices]), strict=True))

        for indices in by_length([len(text["input_ids"]) for text in texts]):
            isolated(indices, score, found.__setitem__)
        return [found[index] for index in range(len(texts))]

    @torch.inference_mode()
    def _forward(self, texts: Sequence[Encoded]) -> numpy.ndarray:
        """Logits [texts, labels]."""
        lengths = [len(text["input_ids"]) for text in texts]
        mask = torch.zeros((len(texts), max(lengths)), dtype=torch.long)
        fed = {name: torch.full_like(mask, self._pads.get(name, 0)) for name in texts[0]}
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            mask[row, :length] = 1
            for name, values in text.items():
                fed[name][row, :length] = torch.tensor(values)
        fed["attention_mask"] = mask
        logits = self._model(**{name: tensor.to(self._model.device) for name, tensor in fed.items()}).logits
        scores: numpy.ndarray = logits.double().cpu().numpy()
        return scores


def load_classifier(folder: Path, settings: Mapping[str, Any], node: Node) -> Classifier:
    """The model in `folder` with a head that classifies sequences; ValueError if it cannot be served."""
    remote = bool(settings.get("trust_remote_code")) and node.allow_remote_code
    placement = place(
        node, on_gpu="auto"
    )  # scores are compared with thresholds found elsewhere: keep the checkpoint's dtype
    suffix = "ForSequenceClassification"
    model = load_model(folder, placement, remote, suffix=suffix, auto=f"AutoModel{suffix}")
    facts = {
        "device": str(model.device),
        "dtype": dtype_name(model),
        "dtype_reason": placement.reason,
        "architecture": type(model).__name__,
    }
    return Classifier(model, load_tokenizer(folder, remote), node, facts)
