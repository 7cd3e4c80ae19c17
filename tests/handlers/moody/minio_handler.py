"""A handler without a model that does what it is told, however bad: for tests of what stands in front of a worker.

The input is one word and a number: `say`, `sleep SECONDS`, `stream COUNT` (a piece each 0.1 s), `die`, `exhaust`, `nonsense`.
A file named in the environment variable MOODY says how a start goes: `fail`, `die`, `slow` (until the file is gone), or empty
for well.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler


class MoodyHandler(BaseHandler):  # type: ignore[misc]
    def initialize(self, context: Any) -> None:
        while (mood := self.mood()) == "slow":
            time.sleep(0.05)
        if mood == "fail":
            raise ValueError("the weights are in a bad mood")
        if mood == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.initialized = True

    @staticmethod
    def mood() -> str:
        path = os.environ.get("MOODY")
        return Path(path).read_text().strip() if path and Path(path).exists() else ""

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        return [self.answer(row, context) for row in data]

    def answer(self, row: dict[str, Any], context: Any) -> Any:
        body = row["body"] if isinstance(row["body"], dict) else json.loads(row["body"])
        word, _, number = body["input"].partition(" ")
        if word == "sleep":
            time.sleep(float(number))
        elif word == "stream":
            for index in range(int(number)):
                piece = f"data: {index}\n\n"
                send_intermediate_predict_response([piece], context.request_ids, "ok", 200, context)
                time.sleep(0.1)
            return "data: end\n\n"
        elif word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "exhaust":
            raise MemoryError
        elif word == "nonsense":
            raise KeyError(number)
        return json.dumps([{"generated_text": body["input"]}])
