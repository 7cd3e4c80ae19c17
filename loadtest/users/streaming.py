"""Text generation streamed token by token: time to first token, and the gaps between tokens."""

from locust import task

from loadtest import bodies, sse
from loadtest.options import GENERATION
from loadtest.users.base import DoorUser, Exchange


class StreamingUser(DoorUser):
    """Reads a stream to its end; the time in Locust's own statistics is that of the whole stream."""

    weight = 2

    def on_start(self) -> None:
        self.choose(lambda plan: plan.options.model, GENERATION)

    @task  # type: ignore[untyped-decorator]
    def stream(self) -> None:
        options = self.plan.options
        tokens = self.random.randint(*options.answer_tokens)
        body = bodies.generation(options.prompt_words, tokens, self.random, stream=True)
        with self.session.floor.shared():
            self.predict_and_record("stream", body, self._read, stream=True)

    @staticmethod
    def _read(exchange: Exchange) -> None:
        ended = False
        for event in sse.events(exchange.response._response):
            if "error" in event:
                raise ValueError(f"the stream broke off: {event['error']}")
            if "token" in event:
                exchange.token()
            ended = ended or "generated_text" in event
        if not ended or not exchange.tokens:
            raise ValueError(f"required tokens and then the whole text, found {exchange.tokens} tokens, ended: {ended}")
