"""The command line: `python -m commands --help`."""

import importlib
import os
import sys

import typer

from commands import output
from weightless.errors import WeightlessError

#: command → the module that has it. Only the one that is asked for is imported: all of them together take a second.
COMMANDS = {
    "models": "releases",
    "promote": "releases",
    "rollback": "releases",
    "canary": "releases",
    "history": "releases",
    "status": "serving",
    "predict": "serving",
    "mar": "serving",
    "retry": "serving",
    "credentials": "secrets",
    "cache": "node",
    "cache-verify": "node",
    "cache-prune": "node",
    "backup": "backup",
    "restore": "backup",
}


def build(wanted: str | None) -> typer.Typer:
    """The application with one command, or with all of them where none is asked for by its name."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # with a single command typer would take its name for an argument
    for name in [wanted] if wanted in COMMANDS else COMMANDS:
        module = importlib.import_module(f"commands.{COMMANDS[name]}")
        app.command(name)(getattr(module, name.replace("-", "_")))
    return app


def main() -> int:
    """0, 1 with one clear error, or 2 for words that are not understood (typer says which)."""
    words = sys.argv[1:]
    try:
        build(words[0] if words else None)(prog_name="python -m commands")
    except WeightlessError as error:
        output.fail(str(error))
        return 1
    except BrokenPipeError:  # who read us has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
