"""The two digests of a file: SHA-256, which hubs and signatures speak, and BLAKE3, which every fetch checks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blake3

from weightless.errors import InvalidFolder

_CHUNK = 1 << 20  # both hashes let other threads run while they work on a chunk


@dataclass(frozen=True)
class Digests:
    """A file's size in bytes and its digests in hex."""

    size: int
    blake3: str
    sha256: str


class Hasher:
    """Feeds both digests in one pass."""

    def __init__(self) -> None:
        self._blake3 = blake3.blake3()
        self._sha256 = hashlib.sha256()
        self._size = 0

    def update(self, chunk: memoryview | bytes) -> None:
        self._blake3.update(chunk)
        self._sha256.update(chunk)
        self._size += len(chunk)

    def digests(self) -> Digests:
        return Digests(self._size, self._blake3.hexdigest(), self._sha256.hexdigest())


def blake3_of_file(path: Path, read: Callable[[int], None] | None = None) -> str:
    """The BLAKE3 of a file in hex; `read` is told the bytes of each chunk. InvalidFolder when it cannot be read."""
    digest, buffer = blake3.blake3(), memoryview(bytearray(_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if read is not None:
                    read(count)
    except OSError as error:
        raise InvalidFolder(f"{path}: required a readable file, found: {error.strerror}") from error
    return digest.hexdigest()
