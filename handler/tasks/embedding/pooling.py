"""From token vectors to one vector a text, as the model's own folder says it was trained.

The files are those of sentence-transformers (modules.json, 1_Pooling/config.json, sentence_bert_config.json), read without that
library: it would add scipy and scikit-learn to every worker.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.shared.loading import read_json_file

_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OLD_NAMES = {  # of the modes, each with a flag of its own; vectors are joined in this order
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Recipe:
    """How this model makes a vector. `modes`: their vectors are joined in this order. `prompt`: put before every text.

    `encoder`: the sub-folder with config, tokenizer and weights, "" for the folder itself. `max_tokens`: longer texts are cut to
    it, special tokens included; None: as long as the model can.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompt: str = ""
    encoder: str = ""


def read_recipe(folder: Path) -> Recipe:
    """The folder's own recipe; mean pooling without normalisation for a folder that has none, as sentence-transformers does.

    Raises:
        ValueError: the folder asks for what this task cannot do; answering without it would be answering wrongly.
    """
    kinds = _modules(folder)
    if kinds is None:
        return Recipe()
    unknown = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    pooling = [path for kind, path in kinds if kind == "Pooling"]
    encoders = [path for kind, path in kinds if kind == "Transformer"]
    if unknown or len(pooling) != 1 or len(encoders) != 1:
        found = ", ".join(kind for kind, _ in kinds)
        raise ValueError(f"modules.json: required one Transformer, one Pooling and perhaps Normalize, found {found}")
    encoder = read_json_file(folder / encoders[0] / "sentence_bert_config.json") or {}
    prompts = read_json_file(folder / "config_sentence_transformers.json") or {}
    config = read_json_file(folder / pooling[0] / "config.json") or {}
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    if prompt and not config.get("include_prompt", True):
        raise ValueError(f"{pooling[0]}/config.json: required include_prompt with a default prompt, found it off")
    return Recipe(
        modes=_modes(config, pooling[0]),
        normalize=any(kind == "Normalize" for kind, _ in kinds),
        max_tokens=encoder.get("max_seq_length"),
        lower_case=bool(encoder.get("do_lower_case")),
        prompt=prompt,
        encoder=encoders[0],
    )


def pool(hidden: torch.Tensor, mask: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Vectors [texts, n · width], float32, from token vectors [texts, tokens, width] and a mask [texts, tokens], padded right."""
    vectors = torch.cat([_pooled(hidden.float(), mask, mode) for mode in recipe.modes], dim=-1)
    return torch.nn.functional.normalize(vectors, dim=-1) if recipe.normalize else vectors


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    if mode == "max":
        return hidden.masked_fill(weights == 0, -torch.inf).amax(dim=1)
    if mode == "weightedmean":  # later tokens, which have seen more, weigh more
        weights = (
            weights * torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)[None, :, None]
        )
    total, length = (hidden * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)
    return total / length.sqrt() if mode == "mean_sqrt_len_tokens" else total / length


def _modules(folder: Path) -> list[tuple[str, str]] | None:
    """(kind, sub-folder) of each module in order; None if the folder has no modules.json, which is a list and not an object."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    try:
        return [
            (str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"modules.json: required a list of modules with type and path, found: {error!r}") from error


def _modes(config: dict[str, Any], where: str) -> tuple[str, ...]:
    value = config.get("pooling_mode")
    if value is not None:
        names = (value,) if isinstance(value, str) else tuple(value)
        unknown = [name for name in names if name not in _MODES]
    else:
        flags = [name for name, flag in config.items() if name.startswith("pooling_mode_") and flag]
        names = tuple(_OLD_NAMES[flag] for flag in _OLD_NAMES if flag in flags)
        unknown = [flag for flag in flags if flag not in _OLD_NAMES]
    if unknown or not names:
        raise ValueError(
            f"{where}/config.json: required a pooling mode of {', '.join(_MODES)}; found {unknown or 'none'}"
        )
    return names
