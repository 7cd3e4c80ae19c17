"""The TorchServe handler of a slim archive: it gets the files of the release that the archive names, loads them, and answers.

This module knows TorchServe's lifecycle and nothing else: `weightless` fetches and verifies, `tasks` loads and runs models.
It must hold exactly one class, and no function named `handle`: TorchServe takes what it finds.
"""

import contextlib
import ctypes
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import AnyHttpUrl
from replies import Replies, event
from rounds import Rounds
from tasks import find_preparer, find_task
from tasks.shared.body import read_json
from tasks.shared.contract import Event, Figures, Joinable, Node, Task
from tasks.shared.device import worker_device
from tasks.shared.errors import DeviceLost
from tasks.shared.policy import NodePolicy
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler

from weightless.held import held_tokenizer
from weightless.ledger import Ledger
from weightless.obtain import Obtained, Pin, link_into, obtain
from weightless.release import Release
from weightless.settings import CacheSettings, FetchSettings, StoreSettings

logger = logging.getLogger(__name__)

RESPONSE_TIMEOUT_S = 120  # TorchServe's own default
MAX_ANSWER_BYTES = 6_553_500  # TorchServe's default of max_response_size: a longer answer would cost the worker


class MinioModifiedHandler(BaseHandler):  # type: ignore[misc]
    """One worker: one release of one model, from start to end."""

    task: Task

    def __init__(self) -> None:
        super().__init__()
        self._lease = contextlib.ExitStack()  # keeps the release's files in the node cache while this worker lives
        self._max_answer_bytes = MAX_ANSWER_BYTES
        self._rounds: Rounds | None = None
        self._unanswered: Ledger | None = None  # of the start, until a request was answered

    def initialize(self, context: Any) -> None:
        """Fetch what is missing, load, and be ready. Whatever fails is raised: a worker that returns from here counts as READY.

        Raises:
            WeightlessError: the release cannot be had. ValueError: it cannot be served. Both say what to do.
        """
        self.context, self.manifest = context, context.manifest
        config: Any = (context.model_yaml_config or {}).get("weightless")
        pin = Pin.of(config)
        ledger = Ledger(pin.model, pin.release)
        try:
            obtained = self._start(context, config, pin, ledger)
        except BaseException as error:
            self._lease.close()
            ledger.note(error=f"{type(error).__name__}: {error}")
            self._write(ledger, config, ledger.phases)
            raise
        ledger.end()
        self._write(ledger, config, ledger.phases)
        self._unanswered = ledger
        self._give_back()
        self.initialized = True
        obtained.sync_later()

    def handle(self, data: list[Any], context: Any) -> list[bytes]:
        """One answer for each request of the batch, in order; an error of one is that one's alone.

        Under continuous batching: one step of all requests that run, and what it has for each.
        """
        began = time.monotonic()
        play = self._batch if self._rounds is None else self._rounds.play
        answers = play(data, context, self._max_answer_bytes)
        if (ledger := self._unanswered) is not None:
            self._unanswered, took = None, time.monotonic() - began
            ledger.note(first_answer_s=round(took, 4))
            with contextlib.suppress(OSError):  # a full disk: what was asked is answered all the same
                self._write(ledger, context.model_yaml_config["weightless"], {"firstAnswer": took})
        return answers

    def _batch(self, data: list[Any], context: Any, max_answer_bytes: int) -> list[bytes]:
        """All of these requests, to their ends."""
        replies = Replies(context, max_answer_bytes)
        answers: list[bytes] = [b""] * len(data)
        requests: dict[int, Any] = {}
        for index, row in enumerate(data):
            try:
                requests[index] = self.task.parse(read_json(row))
            except Exception as error:
                answers[index] = replies.refusal(index, error)
        for index, result in self._run(requests, context, replies).items():
            streaming = getattr(requests[index], "stream", False)
            begun = "ts_stream_next" in context.get_response_headers(index)
            answers[index] = replies.answer(index, result, streaming, begun)
        return answers

    def _start(self, context: Any, config: Mapping[str, Any], pin: Pin, ledger: Ledger) -> Obtained:
        """The phases of a start, each measured in the ledger."""
        self._max_answer_bytes = config.get("max_response_bytes") or MAX_ANSWER_BYTES
        cache = CacheSettings.load()
        if config.get("cache_dir"):
            cache = cache.model_copy(update={"cache_dir": Path(config["cache_dir"])})
        store = StoreSettings.load()
        if config.get("endpoint"):  # the same store by another door, for a start that is measured over a slower network
            store = store.model_copy(update={"s3_endpoint": AnyHttpUrl(config["endpoint"])})
        prepared: list[Any] = []

        def meanwhile(release: Release, folder: Path) -> None:
            settings = release.content.settings.model_dump()
            if self._held(release, config):
                return
            with contextlib.suppress(Exception):  # `load` will do it again, and say what is wrong
                if (prepare := find_preparer(settings["task"])) is not None:
                    prepared.append(prepare(folder, settings, self._node(context, config)[0]))

        obtained: Obtained = self._lease.enter_context(
            obtain(pin, store, cache, FetchSettings.load(), ledger, meanwhile)
        )
        settings = obtained.release.content.settings.model_dump()
        node, why = self._node(context, config)
        self.device = torch.device(node.device)
        with ledger.phase("link"):
            link_into(obtained, Path(context.system_properties["model_dir"]), code=node.allow_remote_code)
        with ledger.phase("import"):
            load = find_task(settings["task"])
            if held := self._held(obtained.release, config):
                prepared = held
                ledger.note(tokenizer="held by the zygote")
        with ledger.phase("load"):
            self.task = load(obtained.folder, settings, node, *prepared)
        if node.continuous and isinstance(self.task, Joinable):
            self._rounds = Rounds(self.task)
        self.model = getattr(self.task, "model", None)
        ledger.note(task=settings["task"], device_reason=why, **self.task.facts)
        return obtained

    @staticmethod
    def _held(release: Release, config: Mapping[str, Any]) -> list[Any]:
        """What the task's `prepare` would return, if the zygote has it. Not for a start with a cache of its own: that measures a
        node which never had the release."""
        tokenizer = None if config.get("cache_dir") else held_tokenizer(release)
        return [] if tokenizer is None else [tokenizer]

    @staticmethod
    def _node(context: Any, config: Mapping[str, Any]) -> tuple[Node, str]:
        """What the machine says about this worker, and why it has that device."""
        properties = context.system_properties
        device, why = worker_device(properties.get("gpu_id"), torch.cuda.is_available())
        node = Node.of(
            config.get("node") or {},
            device=device,
            seconds=context.model_yaml_config.get("responseTimeout", RESPONSE_TIMEOUT_S),
            allow_remote_code=NodePolicy.load().allow_remote_code,
            continuous=bool(context.model_yaml_config.get("continuousBatching")),
            batch_size=properties.get("batch_size") or 1,
        )
        return node, why

    @staticmethod
    def _give_back() -> None:
        """What parsing and loading left behind returns to the system: with falcon-1g 3 of 70 MiB after 50 requests."""
        with contextlib.suppress(AttributeError):  # a C library that is not glibc
            ctypes.CDLL(None).malloc_trim(0)

    def _run(self, requests: dict[int, Any], context: Any, replies: Replies) -> dict[int, Any]:
        """The task's results by the requests' places in the batch; pieces of streams are sent on as they come."""
        if not requests:
            return {}
        places = list(requests)
        sent = {place: replies.sent(place) for place in places}
        for place in places:
            replies.kind(place, getattr(requests[place], "stream", False))

        def count(place: int) -> None:
            request = requests[place]
            figures = getattr(request, "figures", None) or Figures(
                prompt_tokens=getattr(request, "prompt_tokens", None)
            )
            replies.figures(place, figures, sent[place])

        def emit(events: Mapping[int, Event]) -> None:
            chunks = {places[number]: event(value) for number, value in events.items()}
            for place in chunks:
                count(place)
            ids = {place: context.get_request_id(place) for place in chunks}
            send_intermediate_predict_response(chunks, ids, "Intermediate Prediction success", 200, context)

        try:
            results = self.task.run(list(requests.values()), emit)
        except DeviceLost as error:
            logger.critical("the device is lost (%s); this worker ends and TorchServe starts another", error)
            raise SystemExit(1) from error
        except ConnectionError:
            raise
        except Exception as error:
            logger.error("a batch of %d failed", len(requests), exc_info=error)
            results = [error] * len(requests)
        for place in places:
            count(place)
        return dict(zip(places, results, strict=True))

    def _write(self, ledger: Ledger, config: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """The ledger to the log and where the archive says, these seconds of it to TorchServe's metrics."""
        logger.info(ledger.log_line())
        for name, took in seconds.items():
            self.context.metrics.add_time(
                f"WeightlessStart{name[0].upper()}{name[1:]}", round(took * 1000, 3), unit="ms"
            )
        if config.get("ledger_dir"):
            folder = Path(config["ledger_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{os.getpid()}.partial"
            partial.write_text(json.dumps(ledger.as_dict()))
            partial.replace(folder / f"{os.getpid()}.json")
