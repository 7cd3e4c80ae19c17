"""Sentence embeddings through the front door."""

from locust import task

from loadtest import bodies
from loadtest.options import EMBEDDINGS
from loadtest.users.base import DoorUser


class EmbeddingsUser(DoorUser):
    """Asks for the vectors of two sentences at a time."""

    weight = 2

    def on_start(self) -> None:
        self.choose(lambda plan: plan.options.embedding_model, EMBEDDINGS)

    @task  # type: ignore[untyped-decorator]
    def embed(self) -> None:
        body = bodies.embedding(self.random)
        with self.session.floor.shared():
            self.predict_and_record("embed", body, lambda got: bodies.check_embeddings(got.json(), len(body["input"])))
