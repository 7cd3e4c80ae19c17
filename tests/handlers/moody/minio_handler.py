"""A handler without a model that does what it is told, however bad: for tests of what stands in front of a worker.

The input is one word and a number: `say`, `sleep SECONDS`, `stream COUNT` (a piece each 0.1 s), `die`, `exhaust`, `nonsense`,
`tell` (figures in the answer's headers), `late STATUS` (the head first, 0.2 s later that status and the figures).
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

FIGURES = {
    "X-Weightless-Prompt-Tokens": "7",
    "X-Weightless-Generated-Tokens": "5",
    "X-Weightless-First-Token-Ms": "40",
    "X-Weightless-Batch": "2",
}


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
        return [self.answer(row, context, index) for index, row in enumerate(data)]

    def answer(self, row: dict[str, Any], context: Any, index: int) -> Any:
        body = row["body"] if isinstance(row["body"], dict) else json.loads(row["body"])
        word, _, number = body["input"].partition(" ")
        if word == "sleep":
            time.sleep(float(number))
        elif word == "stream":
            for index in range(int(number)):
                piece = f"data: {index}\n\n"
                send_intermediate_predict_response([piece], context.request_ids, "ok", 200, context)
                time.sleep(0.1)
            return f'data: {{"generated_text": "", "prompt_tokens": 3, "generated_tokens": {number}}}\n\n'
        elif word == "tell":
            sent = float(context.get_request_header(index, "x-weightless-sent"))
            for name, value in (FIGURES | {"X-Weightless-Queue-Ms": f"{time.time() * 1000 - sent:.3f}"}).items():
                context.set_response_header(index, name, value)
        elif word == "late":
            assert context.get_request_header(index, "x-weightless-early") == "1"
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, "X-Weightless-Late", "1")
            send_intermediate_predict_response([b""], context.request_ids, "ok", 200, context)
            time.sleep(0.2)
            error = {"error": {"code": int(number), "type": "timeout", "message": "too late"}}
            body = [{"generated_text": "late"}] if number == "200" else error
            return json.dumps({"status": int(number), "headers": FIGURES}) + "\n" + json.dumps(body)
        elif word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "exhaust":
            raise MemoryError
        elif word == "nonsense":
            raise KeyError(number)
        return json.dumps([{"generated_text": body["input"]}])
