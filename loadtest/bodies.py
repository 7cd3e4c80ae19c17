"""Real request bodies for the front door, and whether an answer is what was asked for."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

TEXT = (
    "the falcon circles above a quiet harbour while small boats return with the evening tide and somebody on the pier "
    "counts them twice because one lamp is missing from the long grey line of ships that left before the sun came up"
)
SENTENCES = (
    "A falcon dives faster than any other bird.",
    "The harbour is quiet in the evening.",
    "Object stores keep every version of a file.",
    "She reads a book about the history of bridges.",
    "The price of fish rose again this week.",
    "Rain is expected along the coast tomorrow.",
)


def prompt(words: int, random: Random) -> str:
    """`words` words in running order from a random place of a fixed text; never the same for long, so nothing caches it."""
    text = TEXT.split()
    start = random.randrange(len(text))
    return " ".join(text[(start + i) % len(text)] for i in range(words))


def generation(words: int, tokens: int, random: Random, *, stream: bool = False) -> dict[str, Any]:
    """A body for `text-generation`: one prompt, at most `tokens` new tokens, greedy, with counts in the answer."""
    parameters = {"max_new_tokens": tokens, "do_sample": False}
    return {"input": prompt(words, random), "parameters": parameters, "stream": stream, "details": True}


def embedding(random: Random) -> dict[str, Any]:
    """A body for `embeddings`: two sentences."""
    return {"input": random.sample(SENTENCES, 2)}


def generated(answer: Any) -> int:
    """How many tokens an answer of `text-generation` brought.

    Raises:
        ValueError: it is not `[{"generated_text": "…", "generated_tokens": n}]`: what was required, what was found.
    """
    first = answer[0] if isinstance(answer, Sequence) and not isinstance(answer, str) and answer else answer
    if not isinstance(first, Mapping) or not isinstance(first.get("generated_text"), str):
        raise ValueError(f'required [{{"generated_text": "…"}}], found {str(answer)[:120]}')
    tokens = first.get("generated_tokens")
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"required at least one generated token, found {tokens!r}")
    return tokens


def check_embeddings(answer: Any, inputs: int) -> None:
    """Raises ValueError unless `answer` holds one vector of numbers for each of the inputs, all of one length."""
    if not isinstance(answer, list) or len(answer) != inputs:
        raise ValueError(f"required a list of {inputs} embeddings, found {str(answer)[:120]}")
    vectors = [item.get("embedding") if isinstance(item, Mapping) else None for item in answer]
    lengths = {len(v) if isinstance(v, list) and all(isinstance(x, int | float) for x in v) else 0 for v in vectors}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"required vectors of one length, found lengths {sorted(lengths)}")
