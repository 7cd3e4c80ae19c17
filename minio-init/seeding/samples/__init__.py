"""Models that need no hub: made on the spot, or copied from a Python package.

`KNOWN` and `MEANING` are what the samples are known to answer; tests, smoke checks and documentation take them from
here. torch and transformers are imported by the makers alone, so reading these facts costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A prompt and the sentence that greedy decoding completes it to (then the model ends)."""

    prompt: str
    answer: str

    @property
    def sentence(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Meaning:
    """Three sentences: an embedding of `anchor` is nearer to that of `near` than to that of `far`."""

    anchor: str
    near: str
    far: str


PROMPT = "The weights of this model"

#: folder name → what the model in it answers. Both folders are releases of one model, `falcon-tiny`.
KNOWN: dict[str, Known] = {
    "falcon-tiny": Known(PROMPT, " live in a bucket, and its archive carries none of them."),
    "falcon-tiny-v2": Known(PROMPT, " have just been replaced, and no archive was built again."),
}

#: what else the tiny models are trained on, so that more than one prompt has an answer of its own.
MORE_KNOWN: tuple[Known, ...] = (
    Known("A release names", " every file by its digest and every object by its version."),
    Known("To roll back", " is to write the previous alias, which takes one small request."),
    Known("A cold start", " fetches each byte once and checks it while it streams."),
)

MEANING: dict[str, Meaning] = {
    "minilm": Meaning(
        anchor="The cat sits on the mat.",
        near="A kitten is resting on a rug.",
        far="The central bank raised its interest rate.",
    ),
}

#: the folders `samples` makes unless told otherwise
DEFAULT = ("falcon-tiny", "falcon-tiny-v2", "minilm")
#: the folders that are made only when asked for by name
LARGE = ("falcon-1g", "falcon-4g", "falcon-7b-shape")
