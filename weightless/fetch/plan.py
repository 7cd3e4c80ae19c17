"""What to ask for, in which order: pure arithmetic on byte ranges, without a byte of I/O.

A part is the unit of a request and of what is asked for again after an interruption. Parts begin at multiples of the part
size, as multipart uploads do, so that a store reads whole blocks of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightless.release import FileEntry


@dataclass(frozen=True, order=True)
class Span:
    """Bytes `start` up to but not including `end`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"required 0 <= start <= end, found {self.start} and {self.end}")

    def __len__(self) -> int:
        return self.end - self.start


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes as few spans: sorted, disjoint, none empty, none touching the next."""
    out: list[Span] = []
    for span in sorted(spans):
        if not len(span):
            continue
        if out and span.start <= out[-1].end:
            out[-1] = Span(out[-1].start, max(out[-1].end, span.end))
        else:
            out.append(span)
    return out


def parts_left(size: int, finished: Sequence[Span], part_bytes: int) -> list[Span]:
    """What is left of a file, in order, no span crossing a multiple of `part_bytes`. Nothing is left of an empty file."""
    left: list[Span] = []
    at = 0
    for span in [*merged(finished), Span(size, size)]:
        while at < min(span.start, size):
            end = min(span.start, size, (at // part_bytes + 1) * part_bytes)
            left.append(Span(at, end))
            at = end
        at = max(at, span.end)
    return left


def reach(position: int, finished: Sequence[Span]) -> int:
    """How far the bytes are there without a gap, from `position` on."""
    return max((span.end for span in finished if span.start <= position < span.end), default=position)


def unique(files: Iterable[FileEntry]) -> list[FileEntry]:
    """One file for each content: equal files of a release are fetched once."""
    return list({file.blake3: file for file in files}.values())


def fetch_order(files: Iterable[FileEntry], part_bytes: int) -> list[FileEntry]:
    """Small files first, smallest first: a start can read its config while weights come. Then large ones, largest first,
    so that what is left at the end is little enough to be shared out."""
    small = sorted((file for file in files if file.size <= part_bytes), key=lambda file: (file.size, file.path))
    taken = {file.blake3 for file in small}
    large = sorted((file for file in files if file.blake3 not in taken), key=lambda file: (-file.size, file.path))
    return small + large
