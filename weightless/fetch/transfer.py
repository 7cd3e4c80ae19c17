"""Fetching the missing blobs of a release: threads that each have a connection, a buffer, and the next part to get.

A thread goes through one file from front to back as long as there are more files than threads, which hashes everything as
it streams; when fewer files are left than threads, the idle ones take parts of what the others still have. A file that
another process is fetching is left to it, and looked at again when there is nothing else to do.

Small files are for one thread with several connections, whose requests are sent ahead: the store works on the next ones while
one is written. More threads would mostly wait for each other, since a small file is all interpreter and no bytes.
"""

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weightless.errors import FetchFailed, VerificationFailed
from weightless.fetch.partial import Partial, finished_parts
from weightless.fetch.plan import Span
from weightless.fetch.wire import Connection, Interrupted, Wanted
from weightless.layout import size_of
from weightless.release import FileEntry, Release
from weightless.settings import FetchSettings, StoreSettings

_log = logging.getLogger(__name__)
BUFFER_BYTES = (
    1 << 20
)  # of 256 KiB to 4 MiB the one with the least CPU time: system calls are few, and it stays in the cache
_SMALL = BUFFER_BYTES  # bytes, up to which a file is small
_AHEAD = 4  # small files that are asked for at a time, for each connection that large ones have
_TRIES = 3  # how often a file whose bytes are wrong is fetched from the start
_LOOK_AGAIN = 0.05  # seconds between looks at what another process is fetching
_PAUSE, _LONGEST_PAUSE = (
    0.1,
    5.0,
)  # seconds before another attempt: doubled by each that brought nothing, and half of it by chance
_TICK = 0.2  # seconds between two reports of progress


@dataclass(frozen=True)
class Places:
    """Where blobs and partial files lie, and the permission bits of new ones."""

    blob: Callable[[str], Path]
    partial: Callable[[str], Path]
    mode: int


@dataclass(eq=False)
class _File:
    """A file of the plan, once it is this process's to fetch."""

    entry: FileEntry
    partial: Partial
    parts: deque[Span]
    flying: int = 0
    tries: int = 1
    ended: bool = False


@dataclass
class _Flight:
    """A part on its way: up to where it came, and how many attempts in a row brought nothing."""

    file: _File
    part: Span
    at: int
    futile: int = 0


@dataclass
class _Counters:
    received: int = 0
    retries: int = 0
    done: int = 0
    files_done: int = 0
    hash_seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, *, received: int = 0, retries: int = 0, done: int = 0, files_done: int = 0, hash_seconds: float = 0.0
    ) -> None:
        with self.lock:
            self.received += received
            self.retries += retries
            self.done += done
            self.files_done += files_done
            self.hash_seconds += hash_seconds


class Transfer:
    """One run over the missing files of one release. `received`, `retries` and `hash_seconds` count what this process did."""

    def __init__(
        self,
        store: StoreSettings,
        release: Release,
        missing: Sequence[FileEntry],
        places: Places,
        settings: FetchSettings,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """`missing`: in the order in which to fetch them. `report`: called with bytes and files done, by `run`'s own thread."""
        self._store = store
        self._release = release
        self._places = places
        self._settings = settings
        self._report = report
        self._small = deque(file for file in missing if file.size <= _SMALL)
        self._queue = deque(file for file in missing if file.size > _SMALL)
        self._left = len(missing)  # files that do not have their final name yet
        self._open: list[_File] = []
        self._elsewhere: dict[str, FileEntry] = {}
        self._looked = 0.0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._count = _Counters()
        self._connections: list[Connection] = []

    @property
    def received(self) -> int:
        return self._count.received

    @property
    def retries(self) -> int:
        return self._count.retries

    @property
    def hash_seconds(self) -> float:
        """Of all threads together, for the files that are done."""
        return self._count.hash_seconds

    def run(self) -> None:
        """Return when every file is verified under its final name; else raise the first thing that went wrong."""
        parts = sum(-(-file.size // self._settings.fetch_part_bytes) for file in self._queue)
        large = min(self._settings.fetch_connections, parts)
        threads = [threading.Thread(target=self._work, args=(self._go_large,), daemon=True) for _ in range(large)]
        if self._small:
            threads.insert(0, threading.Thread(target=self._work, args=(self._go_small,), daemon=True))
        try:
            for thread in threads:
                thread.start()
            while self._left and self._failure is None:
                with self._changed:
                    self._changed.wait_for(lambda: not self._left or self._failure is not None, _TICK)
                self._tell()
        finally:
            self._end()
            for thread in threads:
                thread.join()
            for file in self._open:
                file.partial.close()
        if self._failure is not None:
            raise self._failure
        self._tell()

    def _tell(self) -> None:
        if self._report:
            with self._changed:
                waiting = [entry for entry in self._elsewhere.values() if entry.size > self._settings.fetch_part_bytes]
            elsewhere = sum(map(self._seen_elsewhere, waiting))
            self._report(self._count.done + elsewhere, self._count.files_done)

    def _seen_elsewhere(self, entry: FileEntry) -> int:
        """Bytes of a file that another process is fetching, as far as its sidecar says."""
        try:
            path = self._places.partial(entry.blake3)
            return sum(map(len, finished_parts(path.with_name(f"{path.name}.parts"))))
        except (ValueError, OSError):
            return 0

    def _end(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
            connections = list(self._connections)
        for connection in connections:
            connection.abort()

    # ---- one thread

    def _work(self, go: Callable[[contextlib.ExitStack, memoryview], None]) -> None:
        try:
            with contextlib.ExitStack() as open_until_the_end:
                go(open_until_the_end, memoryview(bytearray(BUFFER_BYTES)))
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
            self._end()

    def _connect(self, stack: contextlib.ExitStack) -> Connection:
        connection = stack.enter_context(Connection(self._store, self._settings.fetch_stall_seconds))
        with self._changed:
            self._connections.append(connection)
        return connection

    def _go_large(self, stack: contextlib.ExitStack, buffer: memoryview) -> None:
        connection, flight = self._connect(stack), None
        while (flight := self._next(flight.file if flight else None, buffer)) is not None:
            self._get(connection, flight, buffer)
            self._landed(flight.file, buffer)

    def _go_small(self, stack: contextlib.ExitStack, buffer: memoryview) -> None:
        idle = [self._connect(stack) for _ in range(min(_AHEAD * self._settings.fetch_connections, len(self._small)))]
        asked: deque[tuple[Connection, _Flight]] = deque()
        while not self._stop.is_set():
            while idle and self._small:
                file = self._begin(self._small.popleft(), buffer)
                if file is not None and (flight := self._take(file)) is not None:
                    connection = idle.pop()
                    with contextlib.suppress(Interrupted):  # then the answer does not come either
                        connection.ask(self._wanted(flight))
                    asked.append((connection, flight))
            if not asked:
                break
            connection, flight = asked.popleft()
            self._get(connection, flight, buffer, asked=True)
            self._landed(flight.file, buffer)
            idle.append(connection)
        self._go_large(stack, buffer)  # whatever another process gives up, or was wrong

    def _next(self, mine: _File | None, buffer: memoryview) -> _Flight | None:
        """The next part for a thread that last worked on `mine`; waits while others may still leave something. None: the end."""
        while True:
            with self._changed:
                if self._stop.is_set() or not self._left:
                    return None
                file = self._pick(mine)
                if file is not None and (flight := self._take(file)) is not None:
                    return flight
                if not self._queue:
                    self._wait()
                    continue
                entry = self._queue.popleft()
            mine = self._begin(entry, buffer)

    def _take(self, file: _File) -> _Flight | None:
        """A part of the file for this thread, None if others have them all."""
        with self._changed:
            if not file.parts:
                return None
            file.flying += 1
            part = file.parts.popleft()
            return _Flight(file, part, part.start)

    def _pick(self, mine: _File | None) -> _File | None:
        """This thread's own file; else, when no file waits to be begun, the one with the most left."""
        if mine is not None and mine.parts:
            return mine
        if self._queue:
            return None
        return max((file for file in self._open if file.parts), key=lambda file: len(file.parts), default=None)

    def _wait(self) -> None:
        """Until there may be something to do; now and then that is another look at what other processes fetch."""
        self._changed.wait(_LOOK_AGAIN if self._elsewhere else None)
        if self._elsewhere and not self._queue and time.monotonic() - self._looked >= _LOOK_AGAIN:
            self._looked = time.monotonic()
            self._queue.extend(self._elsewhere.values())
            self._elsewhere.clear()

    def _begin(self, entry: FileEntry, buffer: memoryview) -> _File | None:
        """Make the file ours to fetch. None: it is there already, or somebody else is fetching it."""
        blob, path = self._places.blob(entry.blake3), self._places.partial(entry.blake3)
        partial = Partial.open(path, entry, self._settings.fetch_part_bytes, self._places.mode)
        if partial is None:
            with self._changed:
                self._elsewhere[entry.blake3] = entry
            return None
        if size_of(blob) == entry.size:  # whoever held the lock gave the blob its final name before we got it
            partial.discard()
            self._done(entry.size)
            return None
        file = _File(entry, partial, deque(partial.left()))
        self._count.add(done=partial.finished_bytes)
        with self._changed:
            self._open.append(file)
            if len(file.parts) > 1:
                self._changed.notify_all()
        partial.catch_up(buffer)
        self._finish_if_whole(file)
        return file

    def _get(self, connection: Connection, flight: _Flight, buffer: memoryview, *, asked: bool = False) -> None:
        """Bring one part, going on where an attempt ended; give up after so many attempts that brought nothing.

        `asked`: the connection was asked for it before.
        """
        partial = flight.file.partial
        partial.allocate(flight.part)
        claimed = partial.claim(flight.part.start)
        try:
            while True:
                try:
                    self._attempt(connection, flight, buffer, claimed, asked)
                    break
                except Interrupted as error:
                    if flight.futile >= self._settings.fetch_attempts or self._stop.is_set():
                        tried = f"gave up after {flight.futile} attempts that brought nothing"
                        raise FetchFailed(f"{error}; {tried}") from error
                    _log.warning("%s; trying again", error)
                asked = False
                self._count.add(retries=1)
                pause = min(_LONGEST_PAUSE, _PAUSE * 2**flight.futile)
                self._stop.wait(random.uniform(pause / 2, pause))  # noqa: S311 (a store that is away a second must not use up all)
        finally:
            if claimed:
                partial.unclaim()
        partial.finish(flight.part)

    def _attempt(self, connection: Connection, flight: _Flight, buffer: memoryview, claimed: bool, asked: bool) -> None:
        flight.futile += 1
        wanted = self._wanted(flight)
        if not asked:
            connection.ask(wanted)
        body = connection.answer(wanted)
        try:
            while flight.at < flight.part.end:
                got = body.readinto(buffer)
                flight.file.partial.write(buffer[:got], flight.at, claimed=claimed)
                flight.at += got
                flight.futile = 0
                self._count.add(received=got, done=got)
                if self._stop.is_set():
                    raise Interrupted("another part of the release failed")
        finally:
            body.close()

    def _wanted(self, flight: _Flight) -> Wanted:
        entry, release = flight.file.entry, self._release
        return Wanted(
            release.location.bucket,
            release.key(entry),
            release.version(entry),
            flight.at,
            flight.part.end,
            entry.size,
        )

    # ---- one file

    def _landed(self, file: _File, buffer: memoryview) -> None:
        with self._changed:
            file.flying -= 1
        file.partial.catch_up(buffer)
        self._finish_if_whole(file)

    def _finish_if_whole(self, file: _File) -> None:
        with self._changed:
            if file.ended or file.parts or file.flying or not file.partial.hashed_whole():
                return
            file.ended = True
        entry, found = file.entry, file.partial.found()
        if found == entry.blake3:
            file.partial.commit(self._places.blob(entry.blake3))
            with self._changed:
                self._open.remove(file)
            self._count.add(hash_seconds=file.partial.hash_seconds)
            self._done(0)
            return
        wrong = (
            f"{self._release.key(entry)} (version {self._release.version(entry)}): required BLAKE3 {entry.blake3}, "
            f"found {found} in {entry.size} bytes"
        )
        if file.tries >= _TRIES:
            file.partial.start_over()
            raise VerificationFailed(
                f"{wrong}, {file.tries} times; the stored object or the way to it is damaged: publish the model again"
            )
        _log.warning("%s; fetching the file again", wrong)
        file.partial.start_over()
        self._count.add(retries=1, done=-entry.size)
        with self._changed:
            file.tries += 1
            file.parts, file.ended = deque(file.partial.left()), False
            self._changed.notify_all()

    def _done(self, already_there: int) -> None:
        self._count.add(done=already_there, files_done=1)
        with self._changed:
            self._left -= 1
            if not self._left:
                self._changed.notify_all()
