"""Which task a folder is for, and the settings of the release that it becomes."""

from __future__ import annotations

from typing import Any

from seeding.folder import Folder
from weightless.errors import InvalidFolder, SettingsError
from weightless.modelfile import ReleaseOverrides
from weightless.release import ReleaseSettings

TASKS = ("text-generation", "embeddings")

#: model types whose bare encoder turns sentences into vectors (the decoders that do have a modules.json)
_ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet",
    "new", "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl",
}  # fmt: skip

#: generation as users of the original handler know it; a model's file replaces single keys
GENERATION: dict[str, Any] = {"max_length": 200, "top_k": 10, "do_sample": True}


def release_settings(folder: Folder, overrides: ReleaseOverrides, task: str | None = None) -> ReleaseSettings:
    """The settings of a release of this folder: what the model's file says, the rest inferred from config.json.

    `task`, given by a person, wins over both. Raises InvalidFolder when the task cannot be told, SettingsError for one
    that does not exist.
    """
    task = task or overrides.task or infer_task(folder)
    if task not in TASKS:
        raise SettingsError(f"task: required one of {', '.join(TASKS)}, found {task!r}")
    generation = GENERATION | overrides.generation if task == "text-generation" else overrides.generation
    return ReleaseSettings(
        task=task,
        trust_remote_code=overrides.trust_remote_code,
        generation=generation,
        chat_template=overrides.chat_template,
        golden=overrides.golden,
    )


def infer_task(folder: Folder) -> str:
    """text-generation or embeddings, by modules.json and config.json; InvalidFolder when neither tells."""
    if "modules.json" in folder.files:  # sentence-transformers wrote it
        return "embeddings"
    config = folder.json("config.json")
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "text-generation"
    if config.get("model_type") in _ENCODERS and any(name.endswith("Model") for name in architectures):
        return "embeddings"
    raise InvalidFolder(
        f"{folder.name}: cannot tell the model's task: required architectures …ForCausalLM (text-generation), a modules.json or "
        f"a bare encoder (embeddings), found {', '.join(architectures) or 'none'} of type {config.get('model_type')!r}; "
        f"give --task (TASK=… with make), or set release.task in config/models/<model>.yaml, to one of {', '.join(TASKS)}"
    )
