"""Arguments that several commands share."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="The model's name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
