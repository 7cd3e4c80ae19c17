"""What a node serves, as its agent tells it: status, predict, mar, retry."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from commands import output
from commands.door import Door, describe
from commands.options import Json, Model
from commands.output import Cell
from commands.releases import doing
from commands.settings import CommandSettings
from weightless.errors import SettingsError

Release = Annotated[str, typer.Option(help="A release such as v1; by default the one being served.")]


def status(as_json: Json = False) -> None:
    """What is served, what is on its way, and what is wrong."""
    found = Door(CommandSettings.load()).status()
    if as_json:
        output.data(found)
        return
    output.say(_machine(found))
    models: dict[str, dict[str, Any]] = found["models"]
    if not models:
        output.say("No model is served. Publish one: make seed MODEL=falcon-tiny")
        return
    rows: list[list[Cell]] = []
    for name, entry in sorted(models.items()):
        rows += [_row(name, entry), *_trial(entry.get("canary"))]
    columns = [
        "model",
        "state",
        "serving",
        "task",
        "workers",
        "inflight",
        "answers",
        "errors",
        "p50",
        "p95",
        "start",
        "now",
    ]
    if not any(str(row[-1]) for row in rows):  # nothing is going on
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    output.table(columns, rows, right=["workers", "inflight", "answers", "errors", "p50", "p95"])
    for name, entry in sorted(models.items()):
        canary = entry.get("canary") or {}
        if entry.get("error"):
            output.fail(f"{name} {entry.get('wanted') or ''}: {describe(entry['error'])}")
        if canary.get("error"):
            output.fail(f"{name} {canary['release']} as canary: {describe(canary['error'])}")


def _machine(found: dict[str, Any]) -> Text:
    healthy = found.get("healthy")
    server, zygote, device = (found.get(name) or {} for name in ("torchserve", "zygote", "device"))
    parts: list[Any] = [("● ", "green" if healthy else "red"), ("healthy" if healthy else "not healthy", "bold")]
    parts += [
        f"   Weightless {found.get('version', '')}   device {_device(device)}   TorchServe {server.get('state', '?')}"
    ]
    if server.get("restarts"):
        parts.append((f" ({server['restarts']} restarts)", "yellow"))
    if zygote:
        parts.append(f"   zygote {zygote.get('state', '?')}")
        if zygote.get("reason"):
            parts.append((f" ({zygote['reason']})", "yellow"))
    return Text.assemble(*parts)


def _device(device: dict[str, Any]) -> str:
    return str(device.get("name") or device.get("kind") or device.get("type") or "cpu")


def _row(name: str, entry: dict[str, Any]) -> list[Cell]:
    serving, wanted = entry.get("serving"), entry.get("wanted")
    release = Text(serving or "-", style="green" if serving else "dim")
    if wanted and wanted != serving:
        release.append(f" → {wanted}", style="cyan")
    shown = output.state(str(entry.get("state", "?")))
    if entry.get("stale"):
        shown.append(" stale", style="yellow")
    now = doing(entry) if entry.get("state") in ("starting", "fetching") else ""
    workers, inflight = str(entry.get("workers", "")), str(entry.get("inflight", ""))
    counts = [workers, inflight, *_answers(entry)]
    return [Text(name, style="bold"), shown, release, entry.get("task") or "-", *counts, _phases(entry), now]


def _trial(canary: dict[str, Any] | None) -> list[list[Cell]]:
    """The line under a model that has a canary: v2 10 %."""
    if canary is None:
        return []
    state = "serving" if canary.get("serving") else "failed" if canary.get("error") else "starting"
    release = Text(f"{canary['release']} {canary['percent']} %", style="green" if canary.get("serving") else "cyan")
    now = doing(canary) if state == "starting" else ""
    counts = [str(canary.get("workers", "")), str(canary.get("inflight", "")), *_answers(canary)]
    return [["  canary", output.state(state), release, "", *counts, _phases(canary), now]]


def _answers(entry: dict[str, Any]) -> list[str]:
    """Answers and errors since the release is here, and the latency of the last minutes."""
    found = entry.get("answers") or {}
    times = [output.milliseconds(found[name]) if found.get(name) is not None else "-" for name in ("p50_s", "p95_s")]
    return [str(found.get("requests", "-")), str(found.get("errors", "-")), *times]


def _phases(entry: dict[str, Any]) -> str:
    """How long it took from alias to serving, and the largest parts of it: 1.43 s (wait 0.90, fetch 0.35)."""
    found = (entry.get("phases") or {}).get("rollout") or {}
    phases = {name: float(took) for name, took in found.items() if isinstance(took, int | float)}
    if not phases:
        return ""
    total = sum(phases.values())
    largest = sorted(phases.items(), key=lambda one: -one[1])[:2]
    parts = ", ".join(f"{name} {took:.2f}" for name, took in largest if took >= 0.01)
    return f"{total:.2f} s" + (f" ({parts})" if parts else "")


def predict(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="INPUT", help="The input; - reads it from standard input.")],
    parameters: Annotated[str, typer.Option(help='JSON, such as {"max_new_tokens": 20, "do_sample": false}.')] = "",
    release: Release = "",
    stream: Annotated[bool, typer.Option("--stream", help="Show tokens as they come.")] = False,
    as_json: Json = False,
) -> None:
    """One prediction through the front door."""
    body: dict[str, Any] = {"input": sys.stdin.read() if text == "-" else text}
    if parameters:
        body["parameters"] = _object(parameters)
    door = Door(CommandSettings.load())
    if stream:
        _stream(door, model, release, body | {"stream": True}, as_json)
        return
    answer, served = door.predict(model, release or None, body)
    if as_json:
        output.data(answer)
        return
    for line in _readable(answer):
        output.say(line)
    if output.out.is_terminal:
        output.note(f"{model} {served}")


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"parameters: required a JSON object, found {text!r} ({error})") from None
    if not isinstance(found, dict):
        raise SettingsError(f"parameters: required a JSON object, found {text!r}")
    return found


def _stream(door: Door, model: str, release: str, body: dict[str, Any], as_json: bool) -> None:
    for event in door.stream(model, release or None, body):
        if as_json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif "token" in event:
            output.out.print(event["token"], end="", markup=False)
    if not as_json:
        output.say()


def _readable(answer: Any) -> list[str]:
    """Texts as they are, embeddings by their first numbers, anything else as JSON."""
    if isinstance(answer, list):
        return [line for one in answer for line in _readable(one)]
    if isinstance(answer, dict) and "generated_text" in answer:
        return [str(answer["generated_text"])]
    vector = answer.get("embedding") if isinstance(answer, dict) else None
    if isinstance(vector, list) and vector and not isinstance(vector[0], list):
        return [f"{len(vector)} numbers: {' '.join(f'{value:.4f}' for value in vector[:6])} …"]
    return [json.dumps(answer, ensure_ascii=False)]


def mar(
    model: Model,
    release: Annotated[
        str, typer.Option(help='A release, or "serving" to follow the alias at each worker start.')
    ] = "",
    to: Annotated[Path, typer.Option(help="The file; - is standard output.")] = Path("-"),
) -> None:
    """A self-contained slim MAR to take away: it runs in any TorchServe 0.12 that reaches the store."""
    archive = Door(CommandSettings.load()).mar(model, release or None)
    if str(to) == "-":
        if sys.stdout.isatty():
            raise SettingsError("required a file for the archive: make mar MODEL=… writes build/<model>.mar")
        sys.stdout.buffer.write(archive)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(archive)
    output.say(f"{to}  {output.size(len(archive))}")


def retry(model: Model) -> None:
    """Try again what the node refused to serve, after its cause is mended."""
    Door(CommandSettings.load()).retry(model)
    output.say(f"{model}: trying again; make status shows how it goes")
