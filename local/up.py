"""up and down: checks first, then the stack, then one line that a person can paste; and all of it gone again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from local import doctor, engine, install, ports, processes, programs, say, stack
from local.config import DOORS, INNER, ROOT, Setup
from local.errors import LocalError

EXAMPLES: dict[str, dict[str, Any]] = {  # by task; the first also by the built-in model's own sentence
    "text-generation": {"input": "The weights of this model", "parameters": {"do_sample": False}},
    "embeddings": {"input": "A model is a folder in a bucket."},
}


def up(setup: Setup) -> int:
    """Start the stack on the chosen engine, wait until its models answer, and print how to talk to it."""
    chosen = engine.choose(setup)
    (up_docker if chosen == "docker" else up_local)(setup)
    return greet(setup, chosen)


def up_docker(setup: Setup) -> None:
    if not engine.running_services():
        doctor.require([doctor.disk("docker"), doctor.ports_check(setup, "docker")])
    env = engine.environment(setup)
    if env.get("TORCHSERVE_RUNTIME") != setup.values.get("TORCHSERVE_RUNTIME"):
        say.mark("note", "gpu", "the engine has the nvidia runtime: used (TORCHSERVE_RUNTIME=runc leaves it out)")
    argv = engine.compose("up", "--build", "--detach", "--wait")
    if say.TERMINAL:
        done = subprocess.run(argv, cwd=ROOT, env=env, check=False)
        said = "see above"
    else:  # compose would print a thousand lines
        log = ROOT / "build/compose.log"
        log.parent.mkdir(exist_ok=True)
        say.mark("busy", "docker", f"building what changed and starting; {log} has the details")
        with log.open("w") as output:
            done = subprocess.run(argv, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, check=False)
        said = "the end of its output:\n" + "\n".join(f"       {row}" for row in log.read_text().splitlines()[-15:])
    if done.returncode != 0:
        raise LocalError(
            f"docker compose up ended with status {done.returncode}; make logs has what the services said; {said}"
        )


def up_local(setup: Setup) -> None:
    if stack.state(setup).get("phase") == "running" and _is_as_wanted(setup):
        say.lines(["The stack is up already."])
        return
    if stack.is_running(setup) and not _is_as_wanted(setup):
        say.lines(["The settings changed: starting the stack anew."])
        down_local(setup)
    if not stack.is_running(setup):
        first = not (ROOT / ".venv/bin/python").exists()
        doctor.require(
            [
                doctor.system(),
                doctor.java(),
                doctor.python(),
                *doctor.go_tools(),
                *([doctor.disk("local")] if first else []),
            ]
        )
        install.install(setup.values)
        end_leftovers(setup)
        taken = ports.busy({name: setup.ports[name] for name in DOORS | INNER}, setup.bind)
        if taken:
            said = "\n       ".join(
                f"port {setup.ports[name]} ({name}) is in use by {who}" for name, who in taken.items()
            )
            raise LocalError(f"{said}\n       stop it, or choose another: make up {next(iter(taken))}=… (or in .env)")
        _spawn(setup)
    _follow(setup)


def _is_as_wanted(setup: Setup) -> bool:
    return stack.is_running(setup) and stack.state(setup).get("fingerprint") == setup.fingerprint


def _spawn(setup: Setup) -> None:
    logs = setup.run / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    (setup.run / "state.json").unlink(missing_ok=True)
    stack.baseline_wish(setup).unlink(missing_ok=True)
    with (logs / "supervisor.log").open("ab") as output:
        child = subprocess.Popen(
            [programs.PYTHON, "-m", "local.stack"],
            cwd=ROOT,
            env={**setup.values, "PYTHONPATH": str(ROOT), "RUN_DIR": str(setup.run)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not stack.state(setup):
        if child.poll() is not None and not stack.is_running(setup):  # else another make up was a moment faster
            raise LocalError(f"the supervisor ended with status {child.returncode}:\n{tail(setup, 'supervisor')}")
        time.sleep(0.02)


def _follow(setup: Setup) -> None:
    """Show the programs coming up, until all are ready or one failed."""
    shown: set[str] = set()
    busy, since = "", 0.0
    while True:
        state = stack.state(setup)
        entries = state.get("programs", {})
        for name, entry in entries.items():
            if entry["state"] in ("ready", "done") and name not in shown:
                shown.add(name)
                kind = "note" if entry["remark"] else "ok"
                say.mark(kind, name, f"{entry['seconds']:5.1f} s  {say.dim(entry['remark'] or address(setup, name))}")
        if state.get("phase") == "running":
            return
        if state.get("phase") in ("failed", "stopped") or not stack.is_running(setup):
            bad = next((name for name, entry in entries.items() if entry["state"] == "failed"), "supervisor")
            remark = entries.get(bad, {}).get("remark", "ended")
            say.mark("wrong", bad, remark)
            raise LocalError(f"{bad} {remark}; the end of {programs.log_path(setup, bad)}:\n{tail(setup, bad)}")
        name = next((name for name, entry in entries.items() if entry["state"] == "starting"), "")
        if name != busy:
            busy, since = name, time.monotonic()
        if name:
            say.busy(name, f"{time.monotonic() - since:5.1f} s  {_doing(setup, name)}")
        time.sleep(0.1)


def _doing(setup: Setup, name: str) -> str:
    """What a program that starts is busy with: the models' states, or its last line."""
    if name != "agent":
        return tail(setup, name, 1).strip()
    models = programs.agent_status(setup).get("models", {})
    return ", ".join(
        f"{model} {entry.get('state', '')}{_part(entry.get('progress'))}" for model, entry in models.items()
    )


def _part(progress: Any) -> str:
    return (
        f" {100 * progress['done'] // progress['total']} %"
        if isinstance(progress, dict) and progress.get("total")
        else ""
    )


def address(setup: Setup, name: str) -> str:
    ports_of = {"minio": "MINIO_PORT", "agent": "AGENT_PORT", "locust": "LOCUST_PORT"}
    return setup.url(ports_of[name]) if name in ports_of else ""


def tail(setup: Setup, name: str, count: int = 15) -> str:
    try:
        rows = programs.log_path(setup, name).read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return ""
    return "\n".join(f"       {row}" for row in rows)


# ---- the end of up


def greet(setup: Setup, chosen: str) -> int:
    """URLs, a curl line that was tried, and what it answered; 1 if a model is not served."""
    models = programs.agent_status(setup).get("models", {})
    failed = {name: model for name, model in models.items() if model.get("state") == "failed"}
    where = "Docker" if chosen == "docker" else f"processes; logs in {setup.run / 'logs'}"
    rows = [
        "",
        f"{say.bold('Weightless is up')} ({where})",
        "",
        f"  predictions  {setup.url('AGENT_PORT')}   {', '.join(sorted(models)) or 'no models yet: make seed MODEL=…'}",
        f"  load tests   {setup.url('LOCUST_PORT')}",
    ]
    if setup.own_store:
        rows.append(f"  MinIO        {setup.url('MINIO_CONSOLE_PORT')}   make credentials shows the login")
    example = _example(models)
    if example:
        model, body = example
        rows += ["", "Try it:", "", f"  {curl(setup, model, body)}"]
    say.lines(rows)
    if example:
        answer = _predict(setup, *example)
        say.lines([say.dim(f"  → {answer}")])
    for name, model in failed.items():
        say.error(f"{name} is not served: {_message(model)}")
    return 1 if failed else 0


def curl(setup: Setup, model: str, body: dict[str, Any]) -> str:
    """One line for a shell in this checkout; with a key set, it is fetched and not printed."""
    key = ' -H "Authorization: Bearer $(make -s credentials SHOW=api-key)"' if setup.api_key else ""
    data = shlex.quote(json.dumps(body))
    return f"curl -s {setup.url('AGENT_PORT')}/predictions/{model} -H 'Content-Type: application/json'{key} -d {data}"


def _example(models: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """A served model and a body for it, text generation before others."""
    order = {"text-generation": 0, "embeddings": 1}
    served = [
        (order.get(str(entry.get("task")), 9), name, str(entry.get("task")))
        for name, entry in models.items()
        if entry.get("serving")
    ]
    served = sorted(one for one in served if one[2] in EXAMPLES)
    return (served[0][1], EXAMPLES[served[0][2]]) if served else None


def _predict(setup: Setup, model: str, body: dict[str, Any]) -> str:
    status, raw = programs.post(f"{setup.url('AGENT_PORT')}/predictions/{model}", body, setup.api_key)
    text = raw.decode(errors="replace").strip()
    if status != 200:
        raise LocalError(f"the first prediction of {model} answered {status or 'nothing'}: {text}")
    return text if len(text) <= 150 else f"{text[:149]}…"


def _message(model: dict[str, Any]) -> str:
    error = model.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


# ---- down


def down(setup: Setup) -> int:
    """Stop whatever runs on either engine; nothing to stop is no error."""
    forced = setup.values.get("ENGINE")
    stopped = down_local(setup) if forced != "docker" else False
    if forced != "local" and engine.docker_version() and engine.compose_containers():
        down_docker()
        stopped = True
    say.lines(["The stack is down; its data stays (make clean removes it)." if stopped else "Nothing runs."])
    return 0


def down_docker(*more: str) -> None:
    argv = engine.compose("--profile", "*", "down", "--remove-orphans", *more, quiet=not say.TERMINAL)
    if subprocess.run(argv, cwd=ROOT, check=False).returncode != 0:
        raise LocalError("docker compose down failed, see above")


def down_local(setup: Setup) -> bool:
    """Stop the supervisor, which stops the rest; then whatever a crash left."""
    was_running = stack.is_running(setup)
    if was_running:
        os.kill(stack.state(setup)["pid"], signal.SIGTERM)
        began = time.monotonic()
        while stack.is_running(setup):
            entries = stack.state(setup).get("programs", {})
            left = [name for name, entry in entries.items() if entry["state"] in ("ready", "starting")]
            say.busy("stopping", f"{time.monotonic() - began:.0f} s  {' '.join(left)}")
            if time.monotonic() - began > 60:
                os.kill(stack.state(setup)["pid"], signal.SIGKILL)
            time.sleep(0.05)
    return end_leftovers(setup) > 0 or was_running


def end_leftovers(setup: Setup) -> int:
    """End what a supervisor that was killed left behind."""
    count = processes.end(lambda: processes.marked(f"WEIGHTLESS_RUN={setup.run}"), grace=10)
    if count:
        say.mark("note", "leftovers", f"{count} processes of an earlier stack were still there, and were stopped")
    return count


def clean(setup: Setup, yes: bool) -> int:
    """Remove all data of the stack: buckets, releases, cache, secrets, logs. Asks."""
    docker = setup.values.get("ENGINE") != "local" and engine.docker_version() is not None
    local = setup.values.get("ENGINE") != "docker" and setup.run.exists()
    volumes = engine.volumes() if docker else []
    parts = [f"{setup.run}"] if local else []
    parts += [f"{len(volumes)} Docker volumes"] if volumes else []
    if not parts:
        say.lines(["There is no data to remove."])
        return 0
    if not say.agreed(f"This removes every model, release, cached file and secret in {' and '.join(parts)}.", yes):
        raise LocalError("nothing was removed; where nobody can be asked: make clean YES=yes")
    if volumes:
        down_docker("--volumes")
    if local:
        down_local(setup)
        shutil.rmtree(setup.run)
    say.lines(["All data is removed. make up starts anew."])
    return 0


def logs(setup: Setup, service: str, follow: bool) -> int:
    """What the programs said, and go on saying."""
    if engine.choose(setup) == "docker":
        service = {"agent": "torchserve"}.get(service, service)  # its container has TorchServe and the agent
        words = ["logs", "--tail", "100", *(["--follow"] if follow else []), *([service] if service else [])]
        return _to_the_end(engine.compose(*words))
    known = sorted((setup.run / "logs").glob("*.log"))
    chosen = [path for path in known if not service or path.stem == service]
    if not chosen:
        there = ", ".join(path.stem for path in known) or "none yet; start the stack with make up"
        raise LocalError(f"no log of {service or 'the stack'} in {setup.run / 'logs'}; there are: {there}")
    return _to_the_end(["tail", "-n", "100", *(["-F"] if follow else []), *map(str, chosen)])


def _to_the_end(argv: list[str]) -> int:
    sys.stdout.flush()
    try:
        return subprocess.run(argv, cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 0
