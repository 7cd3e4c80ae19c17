"""A handler that needs a package which the serving environment does not have, and answers with where it found it."""

import json
from typing import Any

import shortuuid
from ts.torch_handler.base_handler import BaseHandler


class NeedyHandler(BaseHandler):  # type: ignore[misc]
    def initialize(self, context: Any) -> None:
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        return [json.dumps([{"generated_text": str(shortuuid.__file__)}]) for _ in data]
