"""A handler that does nothing: what is measured with it is what stands in front of a worker."""

import json
from typing import Any

from ts.torch_handler.base_handler import BaseHandler


class EchoHandler(BaseHandler):  # type: ignore[misc]
    """Answers each request with its own input."""

    def initialize(self, context: Any) -> None:
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        return [json.dumps([{"generated_text": self.body(row)["input"]}]) for row in data]

    @staticmethod
    def body(row: dict[str, Any]) -> Any:
        return row["body"] if isinstance(row["body"], dict) else json.loads(row["body"])
