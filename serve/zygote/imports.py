"""What the zygote imports, by the tasks and architectures that are served.

An entry is `package.module`, `package.module:attribute` or `package.module:function(word)`. The second form lets transformers'
lazy modules find where a class lives; the third fills a cache that the first use of a package would fill in every worker.
`weightless`, `tasks` and the handler are never among them: they belong to the archive, and an edited one must be used.
"""

import importlib
from collections.abc import Iterable
from typing import Any

# A zygote without these is none. The rest only makes a first use faster.
REQUIRED = ("torch", "ts.model_service_worker", "ts.torch_handler.base_handler")

ALWAYS = (
    "blake3",
    "minio",
    "pydantic",
    "pydantic.networks",
    "pydantic_settings",
    "safetensors.torch",
    "tenacity",
    "urllib3",
    "yaml",
)

# For the first model that is loaded transformers compiles a thousand regular expressions, for all the models that it knows: half of
# a load's processor time. Any word makes it do so.
CONVERSIONS = "transformers.conversion_mapping:get_checkpoint_conversion_mapping(falcon)"
TRANSFORMERS = ("transformers:AutoConfig", "transformers:AutoTokenizer", "tokenizers", CONVERSIONS)

BY_TASK = {
    "text-generation": (*TRANSFORMERS, "transformers:AutoModelForCausalLM", "transformers:GenerationConfig"),
    "embeddings": (*TRANSFORMERS, "transformers:AutoModel"),
    "text-classification": (*TRANSFORMERS, "transformers:AutoModelForSequenceClassification"),
    "reranking": (*TRANSFORMERS, "transformers:AutoModelForSequenceClassification"),
}


def imports_for(task: str, architectures: Iterable[str] = ()) -> list[str]:
    """What workers of a task need, best with the class names that config.json lists under `architectures`."""
    classes = [f"transformers:{name}" for name in architectures] if task in BY_TASK else []
    return [*REQUIRED, *ALWAYS, *BY_TASK.get(task, ()), *classes]


def import_all(wanted: Iterable[str]) -> list[str]:
    """Import each entry; the ones that failed, with the reason. Raises ImportError for a required one."""
    failed = []
    for entry in dict.fromkeys(wanted):
        module, _, rest = entry.partition(":")
        attribute, called, word = rest.partition("(")
        try:
            found: Any = importlib.import_module(module)
            if attribute:
                found = getattr(found, attribute)
            if called:
                found(word.removesuffix(")"))
        except Exception as error:  # whatever a package raises while it is imported must not cost the others
            if entry in REQUIRED:
                raise ImportError(f"{entry}: {error}") from error
            failed.append(f"{entry}: {error}")
    return failed
