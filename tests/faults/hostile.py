"""Requests that no client should send, made up from a seed: each is the bytes that go over the wire, and what may come back."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODEL = "falcon-tiny"
OTHER = "minilm"
KEEP, CUT = "keep", "cut"

FIELDS = (
    "input",
    "messages",
    "query",
    "texts",
    "parameters",
    "stream",
    "details",
    "model",
    "prompt",
    "max_tokens",
    "n",
    "stop",
)
PARAMETERS = (
    "max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed",
    "return_full_text", "encoding_format", "top_n", "__class__", "", "é" * 50,
)  # fmt: skip
ROUTES = (f"/predictions/{MODEL}", f"/predictions/{OTHER}", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")


@dataclass(frozen=True)
class Hostile:
    """`raw`: what is sent. `ends`: whether the client then cuts its side off, so that no answer need come.

    `refused`: only a 4xx will do; else the request may happen to be one that can be answered.
    """

    kind: str
    raw: bytes
    refused: bool = True
    ends: bool = False


def hostile(seed: int) -> Hostile:
    """The same for the same seed, on any machine."""
    rng = random.Random(seed)
    kind = rng.choice(sorted(_KINDS))
    return _KINDS[kind](rng)


def request(path: str | bytes, body: bytes, *headers: str, method: str = "POST", length: int | None = None) -> bytes:
    """A request in HTTP/1.1 with the body's length, or another."""
    target = path.encode("latin-1") if isinstance(path, str) else path
    lines = ["Host: x", f"Content-Length: {len(body) if length is None else length}", *headers]
    return (
        method.encode()
        + b" "
        + target
        + b" HTTP/1.1\r\n"
        + "\r\n".join(lines).encode("latin-1", "replace")
        + b"\r\n\r\n"
        + body
    )


GOOD = json.dumps({"input": "x", "parameters": {"max_new_tokens": 1}}).encode()


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, of the kinds that break programs."""
    simple: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, -1, 1 << 63, 1 << 64, -(1 << 200), 10**400)),
        lambda: rng.choice((0.0, -0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"))),
        lambda: rng.choice(
            ("", "\0", "\ud800", "\udfff\ud800", "a\u202eb", "🐈", "../../etc/passwd", "' OR 1=1 --", "{{7*7}}")
        ),
        lambda: "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(rng.randrange(40))),
    )
    if depth > 3 or rng.random() < 0.6:
        return rng.choice(simple)()
    if rng.random() < 0.5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice((*FIELDS, *PARAMETERS)): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _sized(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """No hostile request asks for many tokens by accident: that would be work, and no malformed request."""
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and "max_new_tokens" not in parameters and "max_length" not in parameters:
        parameters["max_new_tokens"] = 1
    return body


def _wrong_types(rng: random.Random) -> Hostile:
    body: dict[str, Any] = {"input": "x", "parameters": {"max_new_tokens": 1}}
    body[rng.choice(FIELDS)] = _value(rng)
    return Hostile(
        "wrong types", request(rng.choice(ROUTES[:2]), json.dumps(_sized(rng, body)).encode()), refused=False
    )


def _wrong_parameters(rng: random.Random) -> Hostile:
    parameters = {"max_new_tokens": 1} | {rng.choice(PARAMETERS): _value(rng) for _ in range(rng.randrange(1, 4))}
    body = {"input": "x", "parameters": parameters}
    return Hostile(
        "wrong parameters", request(rng.choice(ROUTES[:2]), json.dumps(_sized(rng, body)).encode()), refused=False
    )


def _wrong_openai(rng: random.Random) -> Hostile:
    body: dict[str, Any] = {
        "model": rng.choice((MODEL, OTHER)),
        "max_tokens": 1,
        "prompt": "x",
        "input": "x",
        "messages": [],
    }
    body = {name: value for name, value in body.items() if rng.random() < 0.7}
    body[rng.choice((*FIELDS, *PARAMETERS, "logit_bias", "tools", "stream_options"))] = _value(rng)
    if rng.random() < 0.5:
        body["messages"] = [
            {rng.choice(("role", "content", "name", "x")): _value(rng), "role": "user"} for _ in range(2)
        ]
        body.setdefault("max_tokens", 1)
    return Hostile("wrong OpenAI bodies", request(rng.choice(ROUTES[2:]), json.dumps(body).encode()), refused=False)


def _any_json(rng: random.Random) -> Hostile:
    value = _value(rng)
    if isinstance(value, dict):
        value = [value]
    return Hostile("no object", request(rng.choice(ROUTES), json.dumps(value).encode()))


def _broken_json(rng: random.Random) -> Hostile:
    raw = bytearray(GOOD)
    for _ in range(rng.randrange(1, 5)):
        choice = rng.random()
        if choice < 0.4:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        elif choice < 0.7:
            del raw[rng.randrange(len(raw)) :]
            raw = raw or bytearray(b"{")
        else:
            raw[rng.randrange(len(raw)) : 0] = rng.randbytes(3)
    return Hostile("broken JSON", request(rng.choice(ROUTES), bytes(raw)), refused=False)


def _not_json(rng: random.Random) -> Hostile:
    raw = rng.choice((
        b"", b"\0", b"\xff\xfe\0\0", b"input=x&parameters=", b"<xml/>", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"input":' * 5000,
        b'{"input": ' + b"1" * 5000 + b"}", b"{} {}", b"{'input': 'x'}", b'{"input": "\xc3"}', b'{"input": "\xed\xa0\x80"}',
        b"--b\r\nContent-Disposition: form-data; name=data\r\n\r\nx\r\n--b--", rng.randbytes(rng.randrange(1, 300)),
    ))  # fmt: skip
    return Hostile("no JSON", request(rng.choice(ROUTES), raw))


def _deep(rng: random.Random) -> Hostile:
    """Around the depth at which Python's parser gives up, which differs between the agent's stack and a worker's."""
    depth = rng.choice((200, 900, rng.randrange(920, 1010), 5000))
    inner = "[" * depth + "]" * depth
    field = rng.choice(("parameters", "input", "x"))
    body = f'{{"input": "x", "{field}": {{"top_k": {inner}}}}}'
    return Hostile("nested deeply", request(rng.choice(ROUTES[:2]), body.encode()))


def _giant(rng: random.Random) -> Hostile:
    size = rng.choice(((1 << 20) + 1, (1 << 20) + 1000, (4 << 20) + 1))
    text = rng.choice("a \n") * size
    return Hostile("giant texts", request(rng.choice(ROUTES[:2]), json.dumps({"input": text}).encode()))


def _many(rng: random.Random) -> Hostile:
    count = rng.choice((65, 3000, 100_000)) if rng.random() < 0.5 else 3000
    path = f"/predictions/{OTHER if count > 2048 and rng.random() < 0.5 else MODEL}"
    return Hostile("huge batches", request(path, json.dumps({"input": ["x"] * count}).encode()))


def _paths(rng: random.Random) -> Hostile:
    path = rng.choice((
        "/predictions/../management", "/predictions/", "/predictions//", "/predictions/%2e%2e/models",
        "/predictions/nobody", f"/predictions/{MODEL}/v9", f"/predictions/{MODEL}/../../models",
        f"/predictions/{MODEL}%2fv1/x", f"/predictions/{MODEL}/v1/extra", "/models",
        "/models?url=http://127.0.0.1/x.mar", "/workflows?url=file:///etc/passwd", "/ping", "/api-description", "//",
        "/", "/predictions/" + "a" * 5000, "/predictions/%00", "/predictions/%ff%fe",
        "/predictions/a%0d%0aX-Evil:%201", "/v1", "/v1/../status/x", "/v1/models/../../x", "/v1/completions/x",
        "/explanations/falcon-tiny", "*", "http://169.254.169.254/latest/", "/predictions/é",
        f"/predictions/{MODEL}?model={OTHER}&x=\t", "/predictions/\\..\\", f"/predictions/{MODEL.upper()}",
        "/coldstart", "/retry/nobody",
    ))  # fmt: skip
    return Hostile("paths", request(path, rng.choice((GOOD, b"", b"\xff"))), refused=f"?model={OTHER}" not in path)


def _methods(rng: random.Random) -> Hostile:
    method = rng.choice(
        ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "", "P\0ST", "X" * 300)
    )
    return Hostile("methods", request(rng.choice(ROUTES), GOOD, method=method))


def _heads(rng: random.Random) -> Hostile:
    """Heads that two servers could read in two ways, or not at all: request smuggling."""
    smuggled = request("/status", b"", method="GET")
    head = f"POST /predictions/{MODEL} HTTP/1.1\r\nHost: x\r\n".encode()
    raw = rng.choice((
        head + b"Content-Length: 5\r\nContent-Length: 60\r\n\r\n" + GOOD,
        head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
        head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled,
        head + b"Transfer-Encoding: xchunked\r\n\r\n" + GOOD,
        head + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" + GOOD + b"\r\n0\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: +5\r\n\r\nhello",
        head + b"Content-Length: 5, 5\r\n\r\nhello",
        head + b"Content-Length: 1e1\r\n\r\n" + GOOD,
        head + b"Content-Length: 99999999999999999999999\r\n\r\n",
        head + b"X: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
        head + b"Bad Header: x\r\nContent-Length: 0\r\n\r\n",
        head + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        head + b"X: " + b"a" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
        head + b"".join(b"X-%d: y\r\n" % number for number in range(500)) + b"Content-Length: 0\r\n\r\n",
        b"POST /predictions/falcon-tiny HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST  /predictions/falcon-tiny\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(60) + b"\r\n\r\n",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        rng.randbytes(50).replace(b"\n", b"x") + b"\r\n\r\n",
    ))  # fmt: skip
    return Hostile("heads", raw)


def _encodings(rng: random.Random) -> Hostile:
    squeezed, bomb = gzip.compress(GOOD), gzip.compress(b" " * (8 << 20))
    raw, header, refused = rng.choice((
        (squeezed[:-9], "Content-Encoding: gzip", True),
        (GOOD, "Content-Encoding: gzip", True),
        (bomb, "Content-Encoding: gzip", True),
        (squeezed, "Content-Encoding: br", False),
        (GOOD, "Content-Encoding: deflate", True),
        (squeezed, "X: y", True),
        (GOOD.decode().encode("utf-16"), "Content-Type: application/json; charset=utf-16", False),
        (b"x", "Content-Type: application/x-www-form-urlencoded", True),
        (b"x", "Content-Type: multipart/form-data", True),
        (b"x", "Content-Type: \xff", True),
        (b"{", "Content-Type: text/event-stream", True),
    ))  # fmt: skip
    return Hostile("encodings", request(ROUTES[0], raw, header), refused)


def _cut(rng: random.Random) -> Hostile:
    """A client that leaves in the middle of its request."""
    chunked = f"POST {ROUTES[0]} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{len(GOOD):x}\r\n".encode()
    raw = rng.choice((request(rng.choice(ROUTES), GOOD), chunked + GOOD + b"\r\n0\r\n\r\n"))
    return Hostile("cut off", raw[: rng.randrange(1, len(raw) - 1)], refused=False, ends=True)


_KINDS: dict[str, Callable[[random.Random], Hostile]] = {
    made.__name__: made
    for made in (
        _wrong_types, _wrong_parameters, _wrong_openai, _any_json, _broken_json, _not_json, _deep, _giant, _many, _paths, _methods,
        _heads, _encodings, _cut,
    )
}  # fmt: skip
