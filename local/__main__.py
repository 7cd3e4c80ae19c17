"""`python3 -m local <command>`: see `--help`. Prints one clear error and exits with 1 instead of a traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from local import baseline, doctor, engine, helping, install, measured, run, say, up
from local.config import Setup
from local.errors import LocalError


def main() -> int:
    options = parser().parse_args()
    try:
        return dispatch(options)
    except LocalError as error:
        say.error(str(error))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say to who stopped listening
        return 1
    except KeyboardInterrupt:
        say.error("interrupted; make status shows what runs, make down stops it")
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 -m local", description="The stack on this machine.")
    commands = top.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "engine", "baseline", "baseline-stop", "measured", "help"):
        commands.add_parser(name)
    commands.add_parser("doctor").add_argument("--json", action="store_true")
    installs = commands.add_parser("install")
    installs.add_argument("--tests", action="store_true", help="also what only tests and benchmark need")
    installs.add_argument("--quiet", action="store_true", help="say nothing where nothing is missing")
    commands.add_parser("clean").add_argument("--yes", action="store_true")
    logs = commands.add_parser("logs")
    logs.add_argument("service", nargs="?", default="")
    logs.add_argument("--no-follow", action="store_true")
    runs = commands.add_parser("run")
    runs.add_argument("--service", default="minio-init", help="the container that has what the command needs")
    runs.add_argument("--folder", default="", help="a folder to read, {folder} in the words")
    runs.add_argument("--writable", default="", help="a folder to write, {folder} in the words")
    runs.add_argument("--cache", action="store_true", help="the command works on the node's cache")
    runs.add_argument("--ask", default="", help="what to agree to first")
    runs.add_argument("--save", default="", help="a file for what the command writes")
    runs.add_argument("words", nargs=argparse.REMAINDER)
    return top


def dispatch(options: argparse.Namespace) -> int:
    if getattr(options, "ask", "") and not say.agreed(options.ask, yes=False):
        raise LocalError("nothing was done; where nobody can be asked: YES=yes")
    if options.command == "help":
        return helping.show()
    setup = Setup.load()
    words = getattr(options, "words", [])
    words = words[1:] if words[:1] == ["--"] else words  # a second one is the command's own
    commands: dict[str, Callable[[], int]] = {
        "up": lambda: up.up(setup),
        "down": lambda: up.down(setup),
        "clean": lambda: up.clean(setup, options.yes),
        "logs": lambda: up.logs(setup, options.service, not options.no_follow),
        "doctor": lambda: doctor.main(setup, options.json),
        "install": lambda: prepare(setup, options.tests, options.quiet),
        "engine": lambda: print(engine.choose(setup)) or 0,
        "baseline": lambda: baseline.start(setup),
        "baseline-stop": lambda: baseline.stop(setup),
        "measured": lambda: measured.publish(setup),
        "run": lambda: run.run(
            setup,
            run.Wanted(words, options.service, options.folder, options.writable, options.save, options.cache),
            last=True,
        ),
    }
    return commands[options.command]()


def prepare(setup: Setup, tests: bool, quiet: bool) -> int:
    """Install what processes (and tests, and the benchmark) need, after checking that it can be."""
    doctor.require([doctor.system(), doctor.java(), doctor.python(), *doctor.go_tools()])
    install.install(setup.values, tests)
    if not quiet:
        say.lines(["Everything is installed in .venv and .tools."])
    return 0


if __name__ == "__main__":
    sys.exit(main())
