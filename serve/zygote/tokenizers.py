"""Tokenizers that forks find ready, in the module `held_tokenizers`: each is parsed once a node, and its memory is shared.

Those of releases that a worker has loaded and answered with: what breaks a parser has broken that worker, and is not brought here.
docs/decisions/0012 has what it saves.
"""

import os
import sys
from collections.abc import Mapping
from types import ModuleType

MODULE = "held_tokenizers"  # as weightless/held.py looks for it, which is not imported here
_PARALLEL = "TOKENIZERS_PARALLELISM"


def hold(wanted: Mapping[str, str]) -> list[str]:
    """Hold these and no others. `wanted`: key → the release's folder. Returns those that cannot be had, with the reason."""
    import transformers

    module = sys.modules.setdefault(MODULE, ModuleType(MODULE))
    held = module.__dict__.setdefault("by_key", {})
    for key in held.keys() - wanted.keys():
        del held[key]
    before, failed = os.environ.get(_PARALLEL), []
    os.environ[_PARALLEL] = "false"  # threads would end all forking
    try:
        for key, folder in wanted.items():
            try:
                if key not in held:
                    held[key] = transformers.AutoTokenizer.from_pretrained(
                        folder, trust_remote_code=False, local_files_only=True
                    )
            except Exception as error:  # a worker will say what is wrong with it
                failed.append(f"tokenizer of {folder}: {error}")
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before
    return failed
