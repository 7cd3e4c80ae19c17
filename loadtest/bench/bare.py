"""A model without anything around it, in a process of its own with the threads that a worker has.

`generate`: transformers' own call, for one prompt; only the call is timed. `embed`: the task class of the slim archive, called
directly. stdin: a request body a line; stdout: {"seconds", "count"} a line, the first of them {"threads"} once it is loaded.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.server import ROOT


class Bare:
    """Such a process. `kind` generate or embed; `options` is the dtype, or the model's node settings."""

    def __init__(self, kind: str, folder: Path, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "loadtest.bench.bare", kind, str(folder), json.dumps(options)]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self.threads = int(self._read()["threads"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # an end of its input ends it
        self._said.close()

    def ask(self, body: dict[str, Any]) -> tuple[float, int]:
        """Seconds of one request, and the tokens or vectors that came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(body) + "\n")
        self._process.stdin.flush()
        found = self._read()
        return found["seconds"], found["count"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            self._said.seek(0)
            said = self._said.read()[-1500:]
            raise BenchFailed(f"the bare model ended with status {self._process.returncode}:\n{said}")
        found: dict[str, Any] = json.loads(line)
        return found


def _generate(folder: str, options: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[float, int]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options["dtype"])).eval()

    def ask(body: dict[str, Any]) -> tuple[float, int]:
        encoded = tokenizer(body["input"], return_tensors="pt", return_token_type_ids=False)
        began = time.perf_counter()
        with torch.inference_mode():
            tokens = model.generate(**encoded, **body["parameters"])
        return time.perf_counter() - began, tokens.shape[1] - encoded["input_ids"].shape[1]

    return ask


def _embed(folder: str, options: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[float, int]]:
    from tasks import load_task
    from tasks.shared.contract import Node

    task = load_task("embeddings", Path(folder), {}, Node.of(options))

    def ask(body: dict[str, Any]) -> tuple[float, int]:
        began = time.perf_counter()
        answer: Any = task.run([task.parse(body)], lambda events: None)[0]
        return time.perf_counter() - began, len(answer)

    return ask


def _main(kind: str, folder: str, options: str) -> None:
    import torch

    ask = {"generate": _generate, "embed": _embed}[kind](folder, json.loads(options))
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        seconds, count = ask(json.loads(line))
        print(json.dumps({"seconds": seconds, "count": count}), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
