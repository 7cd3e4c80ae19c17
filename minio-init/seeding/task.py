"""Which task a folder is for, and the settings of the release that it becomes."""

from __future__ import annotations

import re
from typing import Any

from seeding.folder import Folder
from weightless.errors import InvalidFolder, SettingsError
from weightless.modelfile import ReleaseOverrides
from weightless.release import ReleaseSettings

#: those that are inferred; a node may have others, which must be named
TASKS = ("text-generation", "embeddings", "text-classification", "reranking")

#: model types whose bare encoder turns sentences into vectors (the decoders that do have a modules.json)
_ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet",
    "new", "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl",
}  # fmt: skip

#: generation as users of the original handler know it; a model's file replaces single keys
GENERATION: dict[str, Any] = {"max_length": 200, "top_k": 10, "do_sample": True}


def release_settings(folder: Folder, overrides: ReleaseOverrides, task: str | None = None) -> ReleaseSettings:
    """The settings of a release of this folder: what the model's file says, the rest inferred from config.json.

    `task`, given by a person, wins over both. Raises InvalidFolder when the task cannot be told, SettingsError for what
    cannot be the name of one, and for a golden request with no answer to compare with.
    """
    task = task or overrides.task or infer_task(folder)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", task):
        raise SettingsError(
            f"task: required {', '.join(TASKS)} or the name of a task of your own in lower case, found {task!r}"
        )
    if overrides.golden is not None and "output" not in overrides.golden:
        raise SettingsError(
            "release.golden: required the request and its answer as `output`, found "
            f"{', '.join(overrides.golden) or 'nothing'}: any answer would pass"
        )
    generation = GENERATION | overrides.generation if task == "text-generation" else overrides.generation
    return ReleaseSettings(
        task=task,
        trust_remote_code=overrides.trust_remote_code,
        generation=generation,
        chat_template=overrides.chat_template,
        golden=overrides.golden,
    )


def infer_task(folder: Folder) -> str:
    """One of TASKS, by config.json and modules.json; InvalidFolder when neither tells."""
    config = folder.json("config.json") if "config.json" in folder.files else {}
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        labels = config.get("id2label")  # absent where they are two
        return "reranking" if isinstance(labels, dict) and len(labels) == 1 else "text-classification"
    if "modules.json" in folder.files:  # sentence-transformers wrote it
        return "embeddings"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "text-generation"
    if config.get("model_type") in _ENCODERS and any(name.endswith("Model") for name in architectures):
        return "embeddings"
    found = f"{', '.join(architectures) or 'none'} of type {config.get('model_type')!r}"
    raise InvalidFolder(
        f"{folder.name}: cannot tell the model's task: required architectures …ForCausalLM (text-generation) or "
        "…ForSequenceClassification (text-classification; with one label reranking), a modules.json or a bare encoder "
        f"(embeddings), found {found}; give --task (TASK=… with make), or set release.task in config/models/<model>.yaml, "
        f"to one of {', '.join(TASKS)}"
    )
