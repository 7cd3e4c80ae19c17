"""Is this folder a complete model? Asked before anything is published, of a folder on disk or in the bucket.

Only headers and small files are read: whether the bytes are the right ones is the digests' business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from weightless.errors import InvalidFolder
from weightless.paths import checked_path, collisions

#: what lies in a model folder and is no part of the model: a clone's history, a download's bookkeeping, a desktop's notes
_SKIPPED_FOLDERS = {".git", ".cache", "__pycache__", ".ipynb_checkpoints"}
_SKIPPED_FILES = {".gitattributes", ".gitignore", ".DS_Store"}
#: copies of the weights in other formats, which double what every node fetches; safetensors are what is served
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.mlmodel")
_OTHER_FOLDERS = ("*.mlpackage", "coreml", "onnx", "openvino")
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_MAX = 1024
_HEADER_MAX = 100_000_000  # what the safetensors library accepts
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)

#: read(path, offset, length) → at most `length` bytes of that file
Read = Callable[[str, int, int], bytes]


@dataclass(frozen=True)
class Folder:
    """A model folder wherever it lies: relative path → size in bytes, and a way to read parts of a file.

    `left_out`: weights in other formats that lie there too and are not taken.
    """

    name: str
    files: Mapping[str, int]
    read: Read
    left_out: tuple[str, ...] = ()

    def json(self, path: str) -> dict[str, Any]:
        """A JSON object in the folder; InvalidFolder if it is none."""
        try:
            value = json.loads(self.read(path, 0, self.files[path]))
        except ValueError as error:
            raise InvalidFolder(f"{self.name}: {path}: required JSON, found: {error}; fetch the file again") from None
        if not isinstance(value, dict):
            raise InvalidFolder(f"{self.name}: {path}: required a JSON object, found a {type(value).__name__}")
        return value


def is_part(path: str) -> bool:
    """Whether a file at this relative path belongs to a model, as opposed to git, caches and desktops."""
    *folders, name = PurePosixPath(path).parts
    return name not in _SKIPPED_FILES and not _SKIPPED_FOLDERS.intersection(folders)


def is_other_format(path: str) -> bool:
    """Whether a file holds the weights in a format that is not served."""
    *folders, name = PurePosixPath(path).parts
    return any(fnmatch(name, pattern) for pattern in _OTHER_FORMATS) or any(
        fnmatch(folder, pattern) for folder in folders for pattern in _OTHER_FOLDERS
    )


def local_folder(root: Path) -> Folder:
    """The model's files below `root`, links followed.

    Raises:
        InvalidFolder: no such folder, or a link that leads nowhere.
        UnsafePath: a name that cannot be an object's and a file's everywhere.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise InvalidFolder(f"{root}: required a folder with a model in it, found {found}")
    files: dict[str, int] = {}
    left_out: list[str] = []
    for here, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for name in [*sorted(names), *folders]:
            path = Path(here) / name
            relative = path.relative_to(root).as_posix()
            if name in folders:
                if path.is_symlink():
                    raise InvalidFolder(f"{root}: {relative}: required a folder, found a link to one; copy its files")
            elif is_other_format(relative):
                left_out.append(relative)
            elif is_part(relative):
                if not path.is_file():
                    raise InvalidFolder(
                        f"{root}: {relative}: required a file, found a link that leads nowhere; mend it"
                    )
                files[checked_path(relative)] = path.stat().st_size

    def read(path: str, offset: int, length: int) -> bytes:
        try:
            with (root / path).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise InvalidFolder(f"{root}: {path}: required a readable file, found: {error.strerror}") from error

    return Folder(str(root), files, read, tuple(left_out))


def check(folder: Folder, *, trust_remote_code: bool = False) -> None:
    """Raise InvalidFolder unless a model can be loaded from this folder as far as names, sizes and headers tell."""
    name = folder.name
    if not folder.files:
        raise InvalidFolder(f"{name}: required a model, found no files")
    clash = collisions(list(folder.files))
    if clash:
        raise InvalidFolder(f"{name}: {clash}; rename one of them")
    _no_lfs_pointers(folder)
    if "config.json" not in folder.files:
        nested = [path for path in folder.files if PurePosixPath(path).name == "config.json"]
        hint = (
            f"; did you mean the folder {PurePosixPath(nested[0]).parent}?"
            if nested
            else "; get the model's config too"
        )
        raise InvalidFolder(f"{name}: required config.json, found {_some(list(folder.files))}{hint}")
    folder.json("config.json")
    _weights(folder)
    # Code of the model's own may bring a tokenizer of its own.
    if not trust_remote_code and not any(tokenizer in folder.files for tokenizer in _TOKENIZERS):
        raise InvalidFolder(
            f"{name}: required a tokenizer ({', '.join(_TOKENIZERS[:4])}, …), found none; copy the tokenizer's files "
            "into the folder"
        )


def _no_lfs_pointers(folder: Folder) -> None:
    pointers = [
        path for path, size in folder.files.items() if size <= _LFS_MAX and folder.read(path, 0, len(_LFS)) == _LFS
    ]
    if pointers:
        raise InvalidFolder(
            f"{folder.name}: required the files themselves, found git-lfs pointers that were never pulled: {_some(pointers)}; "
            f"run `git lfs pull` in that clone and seed again"
        )


def _weights(folder: Folder) -> None:
    name = folder.name
    shards = [path for path in folder.files if path.endswith(".safetensors")]
    if not shards:
        found = f"found {_some(list(folder.left_out or folder.files))}"
        raise InvalidFolder(
            f"{name}: required weights as *.safetensors, {found}; convert them with "
            "`AutoModel….from_pretrained(…).save_pretrained(…)`, or take a revision that has them"
        )
    held = {path: _tensors(folder, path) for path in shards}
    if _INDEX in folder.files:
        _index(folder, held)
    elif _WEIGHTS not in folder.files:
        raise InvalidFolder(
            f"{name}: required {_WEIGHTS} or {_INDEX}, found {_some(shards)} without an index; fetch the index too"
        )


def _index(folder: Folder, held: Mapping[str, set[str]]) -> None:
    where = f"{folder.name}: {_INDEX}"
    weight_map = folder.json(_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidFolder(f"{where}: required a weight_map, found none; fetch the file again")
    missing = sorted({str(shard) for shard in weight_map.values()} - set(held))
    if missing:
        raise InvalidFolder(
            f"{where}: required {len(set(weight_map.values()))} shards, missing {_some(missing)}; fetch what is missing"
        )
    absent = [tensor for tensor, shard in weight_map.items() if tensor not in held[shard]]
    if absent:
        raise InvalidFolder(
            f"{where}: required tensors that their shards do not hold: {_some(absent)}; index and shards are of different "
            "revisions, fetch all of one"
        )


def _tensors(folder: Folder, path: str) -> set[str]:
    """The names of the tensors in a safetensors file, after its header and length have been checked."""
    where, size = f"{folder.name}: {path}", folder.files[path]
    again = "the file is truncated or damaged, fetch it again"
    if size < 8:
        raise InvalidFolder(f"{where}: required a safetensors header, found {size} bytes; {again}")
    length = int.from_bytes(folder.read(path, 0, 8), "little")
    if length > min(_HEADER_MAX, size - 8):
        raise InvalidFolder(
            f"{where}: required a header of {length} bytes, found {size - 8} bytes after its length; {again}"
        )
    try:
        header = json.loads(folder.read(path, 8, length))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        data = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise InvalidFolder(f"{where}: required a safetensors header, found something else; {again}") from None
    if 8 + length + data != size:
        raise InvalidFolder(f"{where}: required {8 + length + data} bytes by its header, found {size}; {again}")
    return set(tensors)


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
