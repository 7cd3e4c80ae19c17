"""What a forked worker finds ready: the tokenizer of the release that this node serves, if its own was read from the same files.

The zygote holds it (`serve.zygote.tokenizers`), after a worker has loaded it and answered. It is found by `tokenizer_key`; a
process that no zygote forked holds nothing.
"""

import sys
from typing import Any

from blake3 import blake3

from weightless.release import Release

MODULE = "held_tokenizers"  # in sys.modules; `by_key` is what it has
_WEIGHTS = ".safetensors"
_TASKS = ("text-generation",)  # whose `load` takes a tokenizer


def tokenizer_key(release: Release) -> str | None:
    """One digest over the names and contents of all files but the weights: whatever a tokenizer can be read from.

    None for a task that takes none, and for a release that may bring code of its own: that is for its workers alone.
    """
    settings = release.content.settings
    if settings.task not in _TASKS or settings.trust_remote_code:
        return None
    files = sorted((file.path, file.blake3) for file in release.content.files if not file.path.endswith(_WEIGHTS))
    return blake3(repr(files).encode()).hexdigest()


def held_tokenizer(release: Release) -> Any | None:
    """The tokenizer as transformers' AutoTokenizer reads it from the release's files; None where none is held for them."""
    return getattr(sys.modules.get(MODULE), "by_key", {}).get(tokenizer_key(release))
