"""config/models/<name>.yaml: where a model comes from, what its releases say, and what belongs to this node.

`release` settings change the answers and are written into the next release. `node` settings belong to the machine and are
read on it; changing them needs no release. A model needs no file at all.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weightless.errors import SettingsError
from weightless.paths import checked_model


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubSource(_Section):
    """A repository on Hugging Face; `revision` may be a branch, tag or commit; only files that match `patterns` are taken."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: str = "main"
    patterns: tuple[str, ...] | None = None


class ReleaseOverrides(_Section):
    """What the next release's settings say; what is absent is inferred from the model folder."""

    task: str | None = None
    trust_remote_code: bool = False
    generation: dict[str, Any] = {}
    chat_template: str | None = None
    golden: dict[str, Any] | None = None


class NodeSettings(_Section):
    """What belongs to the machine. Seconds and milliseconds as the names say; `profile` is the dtype policy on a CPU.

    `batching`: in continuous batches a request joins those that run and leaves when it is done, in static ones it waits for
    the slowest of its batch. Default: continuous for text generation with one worker. `batch_size`: default 16 in continuous
    batches, where a lone request waits for nobody, else 1. `max_batch_delay_ms` is of static batches.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    batching: Literal["continuous", "static"] | None = None
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    max_batch_delay_ms: Annotated[int, Field(ge=1)] = 10
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | None = None
    profile: Literal["memory", "throughput"] = "memory"
    startup_timeout_s: Annotated[int, Field(ge=1)] = 600
    response_timeout_s: Annotated[int, Field(ge=1)] = 120
    job_queue_size: Annotated[int, Field(ge=1)] = 256
    max_input_tokens: Annotated[int, Field(ge=1)] = 4096
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    rollout: Literal["blue-green", "recreate"] = "blue-green"
    requirements: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.profile == "throughput" and self.dtype not in ("auto", "float32"):
            raise ValueError(f"profile throughput means float32 on a CPU, found dtype {self.dtype}; remove one of them")
        if self.batching == "continuous" and self.workers > 1:
            raise ValueError(
                f"batching continuous requires workers: 1, found {self.workers}: TorchServe lets only one worker of a model take "
                "requests while others run; serve this model from more containers, or set batching: static"
            )
        return self

    def continuous(self, task: str | None) -> bool:
        """Whether requests of this task (None: not known) join those that run."""
        if self.batching is not None:
            return self.batching == "continuous"
        return task == "text-generation" and self.workers == 1


class ModelFile(_Section):
    """One model's file, or the defaults for a model that has none."""

    name: str
    source: HubSource | None = None
    release: ReleaseOverrides = ReleaseOverrides()
    node: NodeSettings = NodeSettings()


def load_model_file(folder: Path, name: str) -> ModelFile:
    """Read `<folder>/<name>.yaml`; defaults where there is no such file.

    Raises:
        SettingsError: naming the file, the field, what was required and what was found.
    """
    path = folder / f"{checked_model(name)}.yaml"
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return ModelFile(name=name)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: required a readable YAML file, found: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise SettingsError(
            f"{path}: required the sections source, release and node, found a {type(document).__name__}"
        )
    try:
        return ModelFile.model_validate(document | {"name": name})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()[:3]
        )
        raise SettingsError(f"{path}: {wrong}") from None
