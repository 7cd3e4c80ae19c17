"""What should be served: the aliases in the bucket, and the node's own settings of each model.

One listing every two seconds shows every alias with its ETag; only an alias whose ETag changed is read. Who moves an alias may say
so (`refresh`), and need not wait for the next look. With the store away, what was wanted last stays wanted; at the agent's
start that is what the node served last.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serve.agent.memory import Memory
from weightless.errors import InvalidRelease, NotFound, SettingsError, WeightlessError
from weightless.modelfile import NodeSettings, load_model_file
from weightless.release import Alias
from weightless.store import Store

log = logging.getLogger(__name__)

_POLL_TIMEOUT_S = 60.0
_POINTER = {"release", "digest", "manifest_version"}


@dataclass(frozen=True)
class Wanted:
    """A model that should be served, and how; `error` says why it cannot be known."""

    model: str
    alias: Alias | None
    node: NodeSettings
    error: str | None = None

    @property
    def key(self) -> str:
        """Equal for what needs no rollout between. A canary is another thing: it has a key of its own."""
        alias = self.alias.model_dump_json(include=_POINTER) if self.alias else self.error
        return f"{alias} {self.node.model_dump_json()}"

    @property
    def canary(self) -> "Wanted | None":
        """What the alias says should be tried beside it, as if it were wanted alone."""
        if self.alias is None or self.alias.canary is None:
            return None
        return Wanted(self.model, Alias(**self.alias.canary.model_dump(include=_POINTER)), self.node)

    @property
    def percent(self) -> int:
        """The canary's share, 0 where there is none."""
        return self.alias.canary.percent if self.alias and self.alias.canary else 0


class DesiredState:
    """Polls the store. `wanted` is what is known now; `changed` is called with a model's name when that changes."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        models_config_dir: Path,
        only: tuple[str, ...],
        poll_s: float,
        changed: Callable[[str], None],
    ) -> None:
        self.wanted: dict[str, Wanted] = {}
        self.known = False  # whether the store was read since the agent started
        self.error: str | None = None
        self.error_since: datetime | None = None
        self._store = store
        self._memory = memory
        self._dir = models_config_dir
        self._only = only
        self._poll_s = poll_s
        self._changed = changed
        self._asked = asyncio.Event()
        self._etags: dict[str, str] = {}
        self._aliases: dict[str, Alias | WeightlessError] = {}
        self._node_files: dict[str, tuple[tuple[int, int] | None, NodeSettings | SettingsError]] = {}

    @property
    def stale(self) -> bool:
        """Whether the store could not be read the last time."""
        return self.error is not None

    def missing(self, serving: dict[str, str]) -> list[str]:
        """Wanted models that nothing serves."""
        return sorted((set(self.wanted) | set(self._only)) - set(serving))

    def refresh(self) -> None:
        """Look at the store now: somebody says that an alias moved."""
        self._asked.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self._asked.clear()
            try:
                self._etags, self._aliases = await asyncio.wait_for(asyncio.to_thread(self._poll), _POLL_TIMEOUT_S)
                if self.error is not None:
                    log.info("the store answers again")
                self.error, self.error_since, self.known = None, None, True
            except (WeightlessError, TimeoutError) as error:
                self._poll_failed(error)
            self._publish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._poll_s)

    def _poll(self) -> tuple[dict[str, str], dict[str, Alias | WeightlessError]]:
        """The ETags and aliases now: one listing, and a read of each alias that changed.

        Runs in a thread, which lives on when its time is up: so it changes nothing here.
        """
        etags = self._store.alias_etags()
        if self._only:
            etags = {model: etag for model, etag in etags.items() if model in self._only}
        aliases: dict[str, Alias | WeightlessError] = {}
        for model, etag in list(etags.items()):
            if self._etags.get(model) == etag:
                aliases[model] = self._aliases[model]
                continue
            try:
                version = self._store.alias(model)
            except (InvalidRelease, SettingsError, NotFound) as error:
                aliases[model] = error
            else:
                if version is None or version.alias is None:
                    del etags[model]  # deleted since it was listed
                else:
                    aliases[model] = version.alias
        return etags, aliases

    def _poll_failed(self, error: Exception) -> None:
        message = str(error) or f"the store did not answer within {_POLL_TIMEOUT_S:.0f} s"
        if self.error is None:
            self.error_since = datetime.now(UTC)
            log.warning("what is served stays as it is: %s", message)
        self.error = message
        if not self.known and not self._aliases:
            self._aliases = dict(self._remembered())

    def _remembered(self) -> dict[str, Alias | WeightlessError]:
        models = [model for model in self._memory.models() if not self._only or model in self._only]
        releases = [release for release in map(self._memory.recall, models) if release and release.manifest_version]
        return {release.model: Alias.of(release) for release in releases}

    def _publish(self) -> None:
        wanted = {model: self._one(model, alias) for model, alias in self._aliases.items()}
        before, self.wanted = self.wanted, wanted
        for model in sorted(set(before) | set(wanted)):
            if before.get(model) != wanted.get(model):
                self._changed(model)

    def _one(self, model: str, alias: Alias | WeightlessError) -> Wanted:
        node = self._node(model)
        if isinstance(node, SettingsError):
            return Wanted(model, None, NodeSettings(), str(node))
        if isinstance(alias, WeightlessError):
            return Wanted(model, None, node, str(alias))
        return Wanted(model, alias, node)

    def _node(self, model: str) -> NodeSettings | SettingsError:
        """The model's file, read again only when it changed."""
        try:
            stat = (self._dir / f"{model}.yaml").stat()
            stamp: tuple[int, int] | None = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            stamp = None
        known = self._node_files.get(model)
        if known is None or known[0] != stamp:
            known = (stamp, self._load(model))
            self._node_files[model] = known
        return known[1]

    def _load(self, model: str) -> NodeSettings | SettingsError:
        try:
            return load_model_file(self._dir, model).node
        except SettingsError as error:
            return error
