"""Names: of models, of releases, and of files inside a model folder.

An object name comes from a bucket that people write to, and becomes a file name on a node: `checked_path` is the only door.
"""

import re
import unicodedata
from pathlib import PurePosixPath

from weightless.errors import SettingsError, UnsafePath

_MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_RELEASE = re.compile(r"v[1-9][0-9]{0,8}")
_MAX_PATH_BYTES = 1024  # what S3 allows for a key
_MAX_PART_BYTES = 255  # what ext4, xfs and overlayfs allow for a name


def checked_model(name: str) -> str:
    """The model's name, if it can be a folder, an object prefix and a TorchServe model name; else SettingsError."""
    if not _MODEL.fullmatch(name) or "--" in name or ".." in name:
        raise SettingsError(
            f"model name {name!r}: required up to 96 letters, digits, '.', '_' or '-', beginning and ending with a letter or "
            "digit, without '--' or '..'; choose another name"
        )
    return name


def checked_release(name: str) -> str:
    """The release's name, if it is v1, v2, …; else SettingsError."""
    if not _RELEASE.fullmatch(name):
        raise SettingsError(f"release {name!r}: required v1, v2, …; `make models` lists the releases that exist")
    return name


def release_number(name: str) -> int:
    """7 for v7."""
    return int(checked_release(name)[1:])


def checked_path(path: str) -> str:
    """The path as given, if it names a file strictly inside a folder on any system; else UnsafePath.

    Unicode and spaces are allowed. Refused: absolute paths, empty or dot components, backslashes, colons as in a drive,
    control characters, names that are too long, and names whose Unicode form is not NFC (two names that look the same).
    """
    reason = _unsafe_because(path)
    if reason:
        raise UnsafePath(f"object name {path!r}: {reason}; rename the file in the model folder and publish again")
    return path


def _unsafe_because(path: str) -> str | None:
    if not path:
        return "it is empty"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "it is absolute"
    if "\\" in path:
        return "it contains a backslash"
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in path):
        return "it contains a control character or half of a surrogate pair"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "a component is empty, '.' or '..'"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts) or len(path.encode()) > _MAX_PATH_BYTES:
        return f"it is longer than {_MAX_PART_BYTES} bytes a component or {_MAX_PATH_BYTES} bytes in all"
    if unicodedata.normalize("NFC", path) != path:
        return "its Unicode form is not NFC"
    return None


def collisions(paths: list[str]) -> str | None:
    """What would clash on disk among these safe paths: a name twice, or a file that is also another's folder. None if nothing."""
    seen = set(paths)
    if len(seen) != len(paths):
        return next(f"{path!r} is named twice" for index, path in enumerate(paths) if path in paths[:index])
    for path in paths:
        for parent in PurePosixPath(path).parents:
            if str(parent) in seen:
                return f"{str(parent)!r} is both a file and the folder of {path!r}"
    return None
