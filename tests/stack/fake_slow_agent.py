"""A fake of the agent, for the statistics of the load test only: a slow server with known times that the page must show.

Everything else is tested against the real agent. Run as a program it prints its port and serves until it is killed.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from aiohttp import web

PREDICT_S, EMBEDDED_S, EMBED_S = 0.150, 0.210, 0.060
ANSWER = [{"generated_text": "a known sentence", "generated_tokens": 3, "finish_reason": "stop"}]
FIRST_TOKEN_S, BETWEEN_S, TOKENS = 0.240, 0.040, 6
DIGEST = "blake3:" + "5e" * 32
STARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("slim", "cold"): {"ready_s": 1.23, "first_s": 1.45, "build_s": None, "archive_bytes": 31_000,
                       "bytes_from_store": 960_000_000, "store_sent_bytes": 962_000_000, "disk_bytes": 961_000_000,
                       "peak_memory_bytes": 1_150_000_000, "phases": {"fetch": 0.8, "load": 0.3}},
    ("slim", "warm"): {"ready_s": 0.321, "first_s": 0.521, "build_s": None, "archive_bytes": 31_000,
                       "bytes_from_store": 0, "phases": {"load": 0.3}},
    ("mar", "baseline"): {"ready_s": 15.4, "first_s": 16.0, "build_s": 84.9, "archive_bytes": 764_000_000,
                          "bytes_from_store": 0, "phases": {"register": 9.1, "import": 4.2},
                          "disk_bytes": 1_730_000_000, "peak_memory_bytes": 1_310_000_000},
    ("mar", "zygote"): {"ready_s": 10.4, "first_s": 10.6, "build_s": None, "archive_bytes": 764_000_000,
                        "bytes_from_store": 0, "phases": {"register": 9.1, "load": 0.3},
                        "disk_bytes": 1_730_000_000, "peak_memory_bytes": 1_210_000_000},
    ("worker", "zygote"): {"ready_s": 0.22, "first_s": None, "build_s": None, "archive_bytes": 0, "bytes_from_store": 0,
                           "store_sent_bytes": 3000, "phases": {"load": 0.1}, "disk_bytes": 0},
    ("worker", "baseline"): {"ready_s": 4.4, "first_s": None, "build_s": None, "archive_bytes": 0, "bytes_from_store": 0,
                             "phases": {"import": 4.0}, "disk_bytes": 0},
}  # fmt: skip
STATUS = {
    "version": "0.0-fake", "healthy": True, "device": {"type": "cpu"},
    "versions": {"weightless": "0.0-fake", "torch": "0.1-fake", "torchserve": "0.2-fake", "transformers": "0.3-fake"},
    "models": {
        "falcon-tiny": {"state": "serving", "serving": "v1", "wanted": "v1", "digest": DIGEST, "task": "text-generation"},
        "minilm": {"state": "serving", "serving": "v1", "wanted": "v1", "digest": DIGEST, "task": "embeddings"},
    },
}  # fmt: skip
KNOWN = ("falcon-tiny", "falcon-1g")
NO_BASELINE = "required the baseline TorchServe at http://127.0.0.1:8185, found no answer; `make baseline` starts it"
busy = asyncio.Lock()
running = overlaps = served = 0  # predictions under way; how often one ran beside a cold start; how many have ended
held: set[str] = set()


def refuse(code: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "type": kind, "message": message}}, status=code)


@web.middleware
async def keyed(request: web.Request, handler: Any) -> web.StreamResponse:
    key = os.environ.get("API_KEY")
    if key and request.headers.get("Authorization") != f"Bearer {key}":
        return refuse(401, "unauthorized", "required the API key, found none or another")
    answer: web.StreamResponse = await handler(request)
    return answer


async def status(_: web.Request) -> web.Response:
    return web.json_response({**STATUS, "overlaps": overlaps, "served": served})


@contextlib.contextmanager
def alongside() -> Iterator[None]:
    """For one prediction."""
    global running, overlaps, served
    running += 1
    overlaps += busy.locked()
    try:
        yield
    finally:
        running -= 1
        served += 1


async def predict(request: web.Request) -> web.StreamResponse:
    with alongside():
        return await answered(request)


async def answered(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if body["input"] == "fail" or os.environ.get("FAKE_FAILS"):
        return refuse(503, "overloaded", "required fewer than 256 requests, found 256")
    if request.match_info["model"] == "minilm":
        await asyncio.sleep(EMBED_S)
        return web.json_response([{"embedding": [0.1, 0.2, 0.3]} for _ in body["input"]])
    if body.get("stream"):
        return await stream(request)
    await asyncio.sleep(PREDICT_S)
    return web.json_response(ANSWER, headers={"X-Weightless-Model": "falcon-tiny", "X-Weightless-Release": "v1"})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Weightless-Release": "v1"})
    await response.prepare(request)
    for number in range(TOKENS):
        await asyncio.sleep(BETWEEN_S if number else FIRST_TOKEN_S)
        await response.write(b'data: {"token": "word "}\n\n')
    await response.write(
        b"data: " + json.dumps({"generated_text": "word " * TOKENS, "finish_reason": "length"}).encode() + b"\n\n"
    )
    await response.write_eof()
    return response


async def cold_start(request: web.Request) -> web.Response:
    global overlaps
    body = await request.json()
    if busy.locked():
        return refuse(409, "busy", "another cold start is being measured")
    if body["model"] not in KNOWN or (body["model"] == "falcon-1g" and os.environ.get("FAKE_WITHOUT_1G")):
        return refuse(404, "model_not_found", f"required a model with a release, found {body['model']!r}")
    if body["on"] == "baseline" and os.environ.get("FAKE_WITHOUT_BASELINE"):
        return refuse(503, "no_baseline", NO_BASELINE)
    async with busy:
        overlaps += running
        await asyncio.sleep(0.05)
    known = STARTS[(body["variant"], body["cache" if body["variant"] == "slim" else "on"])]
    return web.json_response({"model": body["model"], "release": "v1", "digest": DIGEST, **known})


async def startable(_: web.Request) -> web.Response:
    releases = {"falcon-1g": ["v1"], "falcon-tiny": ["v2", "v1"]}
    if os.environ.get("FAKE_WITHOUT_1G"):
        del releases["falcon-1g"]
    return web.json_response({"busy": False, "releases": releases})


async def baseline(request: web.Request) -> web.StreamResponse:
    if os.environ.get("FAKE_WITHOUT_BASELINE"):
        return refuse(503, "no_baseline", NO_BASELINE)
    model = request.match_info["model"]
    if request.method == "DELETE":
        held.discard(model)
        return web.json_response({"model": model, "held": False})
    if request.method == "PUT":
        held.add(model)
        return web.json_response({"model": model, "release": "v1", "digest": DIGEST, "variant": "no-archive"})
    if model not in held:
        return refuse(404, "not_held", "required PUT first")
    with alongside():
        await asyncio.sleep(EMBEDDED_S)
    return web.json_response(ANSWER, headers={"X-Weightless-Release": "v1"})


async def main() -> None:
    app = web.Application(middlewares=[keyed])
    app.add_routes([
        web.get("/status", status), web.post("/predictions/{model}", predict), web.post("/coldstart", cold_start),
        web.get("/coldstart", startable),
        web.route("*", "/baseline/{model}", baseline),
    ])  # fmt: skip
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(os.environ.get("FAKE_PORT", "0")))
    await site.start()
    assert site._server is not None
    print(site._server.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
