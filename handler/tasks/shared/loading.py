"""From a model folder to a model and its tokenizer with transformers: mapped, on its device, complete, or an error.

On a CPU a checkpoint in its own dtype stays mapped: falcon-1g (0.96 GB) loads in 0.2 s and takes 2 MB of private memory,
where a conversion to float32 takes 2 to 3 s and 1.8 GB.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from tasks.shared.device import Placement
from tasks.shared.packed import pack

logger = logging.getLogger(__name__)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LARGEST_HEADER = 100_000_000  # safetensors' own bound
_NOT_NEEDED = ("pooler.",)  # BERT's pooler: often left out of checkpoints, never used here


def read_json_file(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file; ValueError naming the file if it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: required a JSON object, found: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: required a JSON object, found a {type(value).__name__}")
    return value


def load_model(folder: Path, placement: Placement, trust_remote_code: bool, suffix: str, auto: str) -> Any:
    """The model in `folder`, in eval mode.

    `suffix`: how the class that config.json names must end to be taken as it is ("ForCausalLM"); else transformers' class
    `auto` ("AutoModelForCausalLM") chooses. Naming the class avoids the auto classes' search, and any code in the folder.

    Raises:
        ValueError: no config, or weights that the model needs are not in the folder (they would be random numbers).
    """
    config = read_json_file(folder / "config.json")
    if config is None:
        raise ValueError("required config.json in the model folder, found none; publish the whole folder")
    dtype = placement.dtype if placement.dtype != "auto" else _checkpoint_dtype(folder, config)
    transformers.utils.logging.disable_progress_bar()  # TorchServe would log each step of it as a line
    model, info = _model_class(config, trust_remote_code, suffix, auto).from_pretrained(
        folder,
        dtype=dtype,
        device_map=placement.device_map,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,  # a pickle runs code
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(_NOT_NEEDED))
    wrong = sorted(str(key) for key in info["mismatched_keys"])
    if missing or wrong:
        raise ValueError(
            f"required every weight of {type(model).__name__}, found {len(missing)} missing ({', '.join(missing[:3])}) and "
            f"{len(wrong)} of another shape ({', '.join(wrong[:3])}); the folder is not a complete checkpoint of this config"
        )
    if placement.pack:
        pack(model)
    return model.eval()


def _checkpoint_dtype(folder: Path, config: dict[str, Any]) -> torch.dtype | str:
    """The dtype that most bytes of the weights have, "auto" where their files do not say.

    transformers believes config.json, which a conversion often leaves as it was: bfloat16 weights would become a private float32
    copy of twice their size. Quantised weights are left to what their config says.
    """
    found: Counter[torch.dtype] = Counter()
    for path in folder.glob("*.safetensors"):
        for tensor in _header(path).values():
            if (dtype := _DTYPES.get(tensor.get("dtype"))) is not None:
                begin, end = tensor["data_offsets"]
                found[dtype] += end - begin
    if not found or "quantization_config" in config:
        return "auto"
    chosen = found.most_common(1)[0][0]
    said = config.get("dtype", config.get("torch_dtype"))
    if said is not None and said != str(chosen).removeprefix("torch."):
        logger.info(
            "dtype %s, which the weights have, so that their files are mapped; config.json says %s", chosen, said
        )
    return chosen


def _header(path: Path) -> dict[str, Any]:
    """Names, dtypes and places of a file's tensors; ValueError naming the file if it has none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}: required a safetensors header, found something else; the weights are damaged")
    return header


def _model_class(config: dict[str, Any], trust_remote_code: bool, suffix: str, auto: str) -> Any:
    names = config.get("architectures") or []
    if not trust_remote_code and len(names) == 1 and str(names[0]).endswith(suffix):
        named = getattr(transformers, str(names[0]), None)
        if named is not None:
            return named
    if "auto_map" in config and not trust_remote_code and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"model type {config.get('model_type')!r} brings its own Python code: required trust_remote_code in the release's "
            "settings and ALLOW_REMOTE_CODE=1 on this node, found at least one of them off"
        )
    return getattr(transformers, auto)


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )


def context_length(config: Any) -> int | None:
    """How many tokens the model can attend to, None if its config sets no bound (ALiBi)."""
    if getattr(config, "alibi", False):
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def dtype_name(model: Any) -> str:
    """ "bfloat16" and so on."""
    dtype: torch.dtype = model.dtype
    return str(dtype).removeprefix("torch.")
