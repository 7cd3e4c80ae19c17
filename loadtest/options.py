"""The fields of the start form and of the command line, and what they mean when a run begins.

Locust builds both from one argument parser, and asks for it anew each time it renders the page: the models to choose from are
those that the agent serves at that moment.
"""

import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.agent import Agent
from loadtest.coldstart import ARMS, Arm
from loadtest.errors import InvalidOption, LoadtestError
from loadtest.settings import LoadtestSettings

AUTO = "auto"
OF = ": "  # between a model and its release
GENERATION, EMBEDDINGS = "text-generation", "embeddings"
COLD_START_MODEL, COLD_START_FALLBACK = "falcon-1g", "falcon-tiny"
ASK_SECONDS = 1.0
REMEMBER_SECONDS = 2.0


class OpenChoices(list[str]):
    """Choices that the form offers and the parser does not enforce: the agent may not be up yet when arguments are read,
    and a model may have gone when the page is rendered again with the arguments of the start. Runs check them."""

    def __contains__(self, _: object) -> bool:
        return True


class ServedModels:
    """What the form offers: the names of served models by task and published releases, asked from the agent and remembered."""

    def __init__(self, settings: LoadtestSettings) -> None:
        self._agent = Agent(settings.url, settings.headers())
        self._names: dict[str, list[str]] = {}
        self._releases: dict[str, list[str]] = {}
        self._asked = -REMEMBER_SECONDS

    def of(self, task: str) -> list[str]:
        """Names of that task; none while the agent does not answer."""
        self._ask()
        return self._names.get(task, [])

    def releases(self) -> dict[str, list[str]]:
        """By published model, newest first. While a start is under way they are those of before."""
        self._ask()
        return self._releases

    def _ask(self) -> None:
        if time.monotonic() - self._asked >= REMEMBER_SECONDS:
            self._asked = time.monotonic()
            try:
                status = self._agent.status(timeout=ASK_SECONDS)
                self._names = {task: status.ready(task) for task in (GENERATION, EMBEDDINGS)}
                self._releases = self._agent.releases(timeout=ASK_SECONDS) or self._releases
            except LoadtestError:
                self._names = {}


def add_arguments(parser: Any, served: ServedModels) -> None:
    """Add our fields to Locust's parser. Names have no digits: the page could not map them back."""
    generation = served.of(GENERATION)
    add = parser.add_argument
    models = OpenChoices([AUTO, *generation])
    add("--model", default=AUTO, choices=models, help="generation and streaming; auto: the first one served")
    add("--embedding-model", default=AUTO, choices=OpenChoices([AUTO, *served.of(EMBEDDINGS)]), help="auto: the first")
    add("--prompt-words", type=int, default=16, help="words in a prompt")
    add("--answer-tokens", default="16-64", help="new tokens asked for: a number or a range")
    add("--arrival-rate", type=float, default=0.0, help="requests/s of each user, Poisson; 0: closed loop")
    add("--slo-ms", type=float, default=2000.0, help="a good request ends within this; counts for goodput")
    add("--warmup-seconds", type=float, default=0.0, help="discarded at the start of the run")
    published = served.releases()
    cold = OpenChoices(dict.fromkeys([AUTO, *(published or [COLD_START_MODEL, *generation])]))
    # Locust's form cannot have one field follow another, so each choice says whose release it is.
    releases = OpenChoices([AUTO, *(f"{model}{OF}{name}" for model, names in published.items() for name in names)])
    add("--cold-start-model", default=AUTO, choices=cold, help=f"auto: {COLD_START_MODEL} if published")
    add(
        "--cold-start-release",
        default=AUTO,
        choices=releases,
        help="auto: what is served, else the newest",
    )
    add(
        "--cold-start-variants",
        nargs="+",
        choices=list(ARMS),
        default=["slim-cold", "slim-warm", "mar"],
        is_multiple=True,
        help="ways to start that alternate",
    )
    add("--cold-start-samples", type=int, default=5, help="starts of each variant")


@dataclass(frozen=True)
class Options:
    """The fields, checked. `answer_tokens` is the least and the most that is asked for."""

    model: str
    embedding_model: str
    prompt_words: int
    answer_tokens: tuple[int, int]
    arrival_rate: float
    slo_ms: float
    warmup_seconds: float
    cold_start_model: str
    cold_start_release: str | None
    cold_start_variants: tuple[Arm, ...]
    cold_start_samples: int

    @classmethod
    def read(cls, given: Namespace | Mapping[str, Any]) -> "Options":
        """Check parsed arguments, or the strings of a submitted form.

        Raises:
            InvalidOption: field, what was required, what was found.
        """
        fields = dict(given) if isinstance(given, Mapping) else vars(given)
        return cls(
            model=fields["model"] or AUTO,
            embedding_model=fields["embedding_model"] or AUTO,
            prompt_words=int(_number(fields, "prompt_words", 1, 10_000, whole=True)),
            answer_tokens=_range(str(fields["answer_tokens"])),
            arrival_rate=_number(fields, "arrival_rate", 0, 1000),
            slo_ms=_number(fields, "slo_ms", 1, 3_600_000),
            warmup_seconds=_number(fields, "warmup_seconds", 0, 3600),
            cold_start_model=fields["cold_start_model"] or AUTO,
            cold_start_release=None if fields["cold_start_release"] in ("", AUTO) else fields["cold_start_release"],
            cold_start_variants=_arms(fields["cold_start_variants"]),
            cold_start_samples=int(_number(fields, "cold_start_samples", 1, 1000, whole=True)),
        )


NAMES = tuple(Options.__dataclass_fields__)


def _number(fields: Mapping[str, Any], name: str, low: float, high: float, whole: bool = False) -> float:
    found = fields[name]
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = float("nan")
    if not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InvalidOption(f"{name}: required {kind} from {low:g} to {high:g}, found {found!r}")
    return value


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.replace(" ", "").partition("-")
    if not low.isdigit() or (high and not high.isdigit()) or not 1 <= int(low) <= int(high or low) <= 100_000:
        raise InvalidOption(f"answer_tokens: required a number or a range such as 16-64, found {text!r}")
    return int(low), int(high or low)


def _arms(names: Iterable[str] | str) -> tuple[Arm, ...]:
    wanted = names.split(",") if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in ARMS]
    if unknown or not wanted:
        found = ", ".join(map(repr, unknown)) or "none"
        raise InvalidOption(f"cold_start_variants: required some of {', '.join(ARMS)}; found {found}")
    return tuple(ARMS[name] for name in dict.fromkeys(wanted))


def chosen(name: str, ready: list[str], task: str, url: str) -> str:
    """The model that a field means, given the ones that are ready.

    Raises:
        InvalidOption: it is not served, or nothing of that task is.
    """
    if name == AUTO and ready:
        return ready[0]
    if name in ready:
        return name
    wanted = f"a served model of task {task}" if name == AUTO else f"model {name!r} to be served (task {task})"
    raise InvalidOption(
        f"required {wanted}, found {', '.join(ready) or 'none'} at {url}; `make status` says what is being started"
    )


def to_start(options: Options, published: Mapping[str, list[str]]) -> tuple[str, str | None]:
    """The model that cold starts are of, and its release (None: the agent's choice), given the releases of each model.

    `published` is empty while the agent cannot tell; it then says itself what does not exist.

    Raises:
        InvalidOption: the model has no such release, or has none at all.
    """
    of, _, name = (options.cold_start_release or "").rpartition(OF)
    model = options.cold_start_model
    if model == AUTO:
        model = of or (COLD_START_FALLBACK if published and COLD_START_MODEL not in published else COLD_START_MODEL)
    known = published.get(model, [])
    if published and not known:
        raise InvalidOption(f"cold_start_model: required one of {', '.join(published)}, found {model!r}")
    if (of and of != model) or (known and name and name not in known):
        wanted = f"a release of {model}" + (f" ({', '.join(known)})" if known else "")
        raise InvalidOption(f"cold_start_release: required {wanted}, found {options.cold_start_release!r}")
    return model, name or None
