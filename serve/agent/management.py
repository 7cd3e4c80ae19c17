"""TorchServe's management API: register, describe, set default, unregister. Everything is addressed by name and version."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from weightless.errors import WeightlessError

_TIMEOUT_S = 30.0


class ManagementError(WeightlessError):
    """TorchServe refused a call. `status` is its HTTP status."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: TorchServe answered {status}: {message}")
        self.status = status


class TorchServeAway(WeightlessError):
    """TorchServe cannot be reached: it is down or restarting."""


@dataclass(frozen=True)
class Worker:
    """A worker as TorchServe sees it; `pid` is -1 until it has told. Not ready means loading, dying, or given up."""

    id: str
    pid: int
    ready: bool


class Management:
    """A client of one TorchServe's management port. Close it, or use it as a context manager."""

    def __init__(self, url: str) -> None:
        self._url = str(url).rstrip("/")
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))

    async def close(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def register(
        self, archive: str, model: str, workers: int, timeout_s: float = _TIMEOUT_S, wait: bool = False
    ) -> None:
        """Register an archive of the model store. With `wait`, return when it is READY.

        Without `wait` the answer comes at once: a call that waits occupies one of the loops that answer predictions.
        """
        query = {
            "url": archive,
            "model_name": model,
            "initial_workers": str(workers),
            "synchronous": "true" if wait else "false",
        }
        await self._call("POST", "/models", f"registering {archive}", query, timeout_s)

    async def workers(self, model: str, version: str) -> list[Worker] | None:
        """The version's workers, or None if it is not registered."""
        try:
            answer = await self._call(
                "GET", f"/models/{quote(model)}/{quote(version)}", f"describing {model} {version}"
            )
        except ManagementError as error:
            if error.status == 404:
                return None
            raise
        return [Worker(str(w["id"]), int(w["pid"]), w["status"] == "READY") for w in answer[0]["workers"]]

    async def set_default(self, model: str, version: str) -> None:
        """Make it the version that can not be unregistered before the others."""
        await self._call(
            "PUT", f"/models/{quote(model)}/{quote(version)}/set-default", f"making {model} {version} the default"
        )

    async def scale(self, model: str, version: str, workers: int, timeout_s: float, wait: bool = True) -> None:
        """Set the number of workers and, with `wait`, return when they are READY."""
        query = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "true" if wait else "false"}
        await self._call(
            "PUT", f"/models/{quote(model)}/{quote(version)}", f"scaling {model} {version}", query, timeout_s
        )

    async def unregister(self, model: str, version: str) -> None:
        """Unregister a version and end its workers, at once. It may be gone already."""
        try:
            await self._call("DELETE", f"/models/{quote(model)}/{quote(version)}", f"unregistering {model} {version}")
        except ManagementError as error:
            if error.status not in (400, 404):
                raise

    async def _call(
        self, method: str, path: str, what: str, query: dict[str, str] | None = None, timeout_s: float = _TIMEOUT_S
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._url + path, params=query, timeout=timeout) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise TorchServeAway(
                f"{what}: no answer from TorchServe at {self._url} ({type(error).__name__})"
            ) from error
        if response.status >= 300:
            raise ManagementError(what, response.status, str(answer.get("message", answer)))
        return answer
