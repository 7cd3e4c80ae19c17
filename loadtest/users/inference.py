"""Text generation through the front door: closed loop, or open loop with Poisson arrivals."""

import time

import gevent
from gevent.pool import Group
from locust import task

from loadtest import bodies
from loadtest.arrivals import Arrivals
from loadtest.options import GENERATION
from loadtest.users.base import DoorUser, Exchange


class InferenceUser(DoorUser):
    """Asks for one text at a time; with an arrival rate, as often as it says and whether or not answers have come.

    In the open loop latency counts from the moment the request was due, so a server that falls behind shows it.
    """

    weight = 4
    concurrency = 512
    kind = "generate"

    def on_start(self) -> None:
        self._under_way = Group()
        self.choose(lambda plan: plan.options.model, GENERATION)
        rate = self.plan.options.arrival_rate
        self._arrivals = Arrivals(rate, time.perf_counter(), self.random) if rate else None

    def on_stop(self) -> None:
        self._under_way.kill()

    @task  # type: ignore[untyped-decorator]
    def predict(self) -> None:
        if self._arrivals is None:
            with self.session.floor.shared():
                self.ask(None)
            return
        due = self._arrivals.next()
        gevent.sleep(max(0.0, due - time.perf_counter()))
        if self.session.floor.wait():  # held back by a cold start: that time is nobody's latency
            due = time.perf_counter()
            self._arrivals.restart(due)
        self._under_way.spawn(self._arrive, due)

    def _arrive(self, due: float) -> None:
        with self.session.floor.shared():
            self.ask(due)

    def ask(self, due: float | None) -> None:
        options = self.plan.options
        tokens = self.random.randint(*options.answer_tokens)
        body = bodies.generation(options.prompt_words, tokens, self.random)
        self.predict_and_record(self.kind, body, self._read, due=due)

    @staticmethod
    def _read(exchange: Exchange) -> None:
        exchange.tokens = bodies.generated(exchange.json())
