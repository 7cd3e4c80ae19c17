"""Locust's way in: `locust -f loadtest/locustfile.py`. The users, the fields of the start form, the tabs."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # Locust puts this folder on the path, not its parent

from loadtest.plugin import register
from loadtest.shapes import StepsToSaturation
from loadtest.users.coldstart import ColdStartUser
from loadtest.users.embedded import EmbeddedInferenceUser
from loadtest.users.embeddings import EmbeddingsUser
from loadtest.users.inference import InferenceUser
from loadtest.users.streaming import StreamingUser

__all__ = [
    "ColdStartUser",
    "EmbeddedInferenceUser",
    "EmbeddingsUser",
    "InferenceUser",
    "StepsToSaturation",
    "StreamingUser",
]

register()
