"""What a task is: the contract between the handler, which knows TorchServe, and a task, which knows a kind of model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.shared.errors import RequestError

Event = dict[str, Any]
Emit = Callable[[Mapping[int, Event]], None]
"""Send an event of a stream to each of these requests, by its index in the list given to `run`."""


@dataclass
class Figures:
    """What was counted of one request, for the answer's headers; None: not known (yet).

    `began`, `first_token`: of time.time(), when the model first saw it and when it first said something. `batch`: how many shared
    that pass of the model with it, itself included.
    """

    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    began: float | None = None
    first_token: float | None = None
    batch: int | None = None


class Request(Protocol):
    """A parsed request; `stream` says whether its answer is wanted in pieces."""

    @property
    def stream(self) -> bool: ...


@dataclass(frozen=True)
class Node:
    """What the machine and its owner say about one worker.

    `device`: a torch device's name. `seconds`: how long one request may take before TorchServe gives the worker up, None if
    unlimited. `allow_remote_code`: the owner lets releases bring Python of their own. `continuous`: TorchServe polls the worker
    between steps, so that requests can join those that run, at most `batch_size` of them; `batching` and `workers`: why.
    """

    device: str = "cpu"
    dtype: str = "auto"
    device_map: str | None = None
    profile: str = "memory"
    max_input_tokens: int = 4096
    max_new_tokens: int = 1024
    seconds: float | None = None
    allow_remote_code: bool = False
    continuous: bool = False
    batch_size: int = 1
    batching: str | None = None
    workers: int = 1

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> "Node":
        """From the `node` part of a model-config.yaml; keys that are none of a worker's business are left out."""
        known = {
            name: value for name, value in values.items() if name in cls.__dataclass_fields__ and value is not None
        }
        return cls(**(known | more))


class Task(Protocol):
    """One loaded model. `example` is a body that any model of the task can answer, quickly."""

    example: Mapping[str, Any]
    facts: Mapping[str, Any]
    """What was chosen for this model (device, dtype, pooling …), for the ledger and the status."""

    def parse(self, body: dict[str, Any]) -> Any:
        """A request, ready to run; InvalidRequest if the body is wrong."""
        ...

    def run(self, requests: list[Any], emit: Emit) -> list[Any | RequestError]:
        """One result or error for each request, in order. No request's failure is another's."""
        ...


class Running(Protocol):
    """A request that has joined."""

    def count(self) -> Figures:
        """What can be said of it by now."""
        ...

    def events(self) -> list[Event]:
        """What its stream has to say since the last call."""
        ...

    def result(self) -> Any | RequestError | None:
        """Its answer or its error, None while it runs."""
        ...


@runtime_checkable
class Joinable(Protocol):
    """A task whose requests can join others that run, and leave before them. No request's failure is another's."""

    def parse(self, body: dict[str, Any]) -> Any: ...

    def join(self, request: Any) -> Running: ...

    def leave(self, running: Any) -> None:
        """Nobody waits for it any more: the next step is without it."""
        ...

    def step(self) -> None:
        """A token for each that runs."""
        ...


class Loader(Protocol):
    """The function `load` of a task's module. One that has `prepare` takes what that returned as one more argument, or does it
    itself."""

    def __call__(self, folder: Path, settings: Mapping[str, Any], node: Node, *prepared: Any) -> Task: ...


class Preparer(Protocol):
    """The function `prepare` of a task's module, if it has one: what needs no weights, done while they are fetched."""

    def __call__(self, folder: Path, settings: Mapping[str, Any], node: Node) -> Any: ...
