"""What a headless run does: stages one after another, each with users of one kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from locust import User

from loadtest.coldstart import FORMS, SAME_WORKERS
from loadtest.users.coldstart import ColdStartUser
from loadtest.users.embedded import EmbeddedInferenceUser
from loadtest.users.embeddings import EmbeddingsUser
from loadtest.users.inference import InferenceUser
from loadtest.users.streaming import StreamingUser


@dataclass(frozen=True)
class Stage:
    """Users of one kind for some seconds; 0 seconds: until the cold starts are complete."""

    name: str
    user: type[User]
    users: int
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A named sequence of stages. `options` are its defaults for the fields of the form."""

    name: str
    about: str
    stages: tuple[Stage, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_baseline: bool = False


_COLD = Stage("cold start", ColdStartUser, 1, 0)
_STEPS = (1, 2, 4, 8, 16, 32)
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "quick",
            "every kind of request for ten seconds, and three starts of each variant of a small model (about a minute)",
            (
                Stage("generate", InferenceUser, 4, 10),
                Stage("stream", StreamingUser, 2, 10),
                Stage("embed", EmbeddingsUser, 4, 10),
                _COLD,
            ),
            {"cold_start_model": "falcon-tiny", "cold_start_samples": 3, "answer_tokens": "16-32"},
        ),
        Profile(
            "coldstart",
            "five starts of each form of falcon-1g, on stock and on the zygote, and one more worker (about ten minutes)",
            (_COLD,),
            {
                "cold_start_variants": [
                    *(
                        "slim-cold",
                        "slim-warm",
                        *FORMS,
                        *(form + SAME_WORKERS for form in FORMS),
                        "worker",
                        "worker-stock",
                    )
                ]
            },
            needs_baseline=True,
        ),
        Profile(
            "network",
            "five slim starts of falcon-1g each on loopback, over 10 and 1 Gb/s, and with the store cut off (two minutes)",
            (_COLD,),
            {"cold_start_variants": ["slim-cold", "slim-10gbit", "slim-1gbit", "slim-cut"]},
        ),
        Profile(
            "compare",
            "the same requests to the slim model and to an embedded one on stock TorchServe, in turn (a minute)",
            tuple(
                Stage(f"{name} {turn}", user, 4, 15)
                for name, user, turn in (
                    ("slim", InferenceUser, 1),
                    ("embedded", EmbeddedInferenceUser, 1),
                    ("embedded", EmbeddedInferenceUser, 2),
                    ("slim", InferenceUser, 2),
                )
            ),
        ),
        Profile(
            "saturation",
            "generation with 1 to 32 users in steps of fifteen seconds, then arrivals at a fixed rate",
            (
                *(Stage(f"{users} user{'s' if users > 1 else ''}", InferenceUser, users, 15) for users in _STEPS),
                Stage("open loop, 8/s", InferenceUser, 8, 20, {"arrival_rate": 1.0}),
            ),
        ),
        Profile("soak", "eight users for ten minutes", (Stage("soak", InferenceUser, 8, 600),)),
    )
}
