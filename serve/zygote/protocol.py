"""What launcher and zygote say to each other, on one SOCK_SEQPACKET connection per worker (whole messages, or none).

1. launcher → zygote   argc, working directory, argv and environment, NUL between them; with it the three standard streams
2. zygote              refuses with a sentence (the launcher becomes the real interpreter), or forks
3. worker → launcher   `worker`, with its own pidfd
4. launcher → worker   `go`; until then the worker has run nothing, and without it (end of file) it leaves
5. zygote → launcher   the exit code, when the worker has ended

Nobody is left behind, whoever is killed when:
- The launcher dies: the connection hangs up, and the zygote kills the worker.
- The zygote dies: the kernel kills the worker (PR_SET_PDEATHSIG), the launcher sees end of file and waits on the pidfd until
  the worker is gone before it leaves.
- The zygote is stuck: a launcher that got no answer for 10 s, and finds no `<socket>.importing`, leaves the connection and becomes
  the real interpreter; a worker for it, forked late, never gets its `go`. When a worker ends and nobody tells the exit code, its
  launcher leaves after 10 s.
- The zygote dies between 2 and 4: end of file without `worker` means that no worker has run or ever will, so the launcher may
  safely start one the stock way. The launcher gives up waiting: the worker never gets its `go`.

Step 1 is written in launcher.py, which has to start without imports; it is read here.
"""

import array
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_MESSAGE = (
    1 << 20
)  # more than the kernel lets a SEQPACKET message have: what is too long fails in the launcher, whole
GO = b"go"


class ProtocolError(Exception):
    """A connection sent something that is not a request."""


@dataclass(frozen=True)
class Start:
    """A worker start as TorchServe asked for it. `streams` are this process's copies of standard input, output and error."""

    argv: Sequence[bytes]
    directory: bytes
    environment: Mapping[bytes, bytes]
    streams: tuple[int, int, int]


def receive_start(connection: socket.socket) -> Start | None:
    """The request that lies ready on a connection; None when the launcher left without one. Raises ProtocolError."""
    message, passed, _, _ = connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC)
    if not message:
        return None
    streams = array.array("i")
    for _, _, data in passed:
        streams.frombytes(data[: len(data) - len(data) % 4])
    words = message.split(b"\0")
    if len(streams) != 3 or not words[0].isdigit() or len(words) < 2 + int(words[0]):
        found = f"{len(words)} words, {len(streams)} streams"
        raise ProtocolError(f"required argc, directory, argv, environment and three streams, found {found}")
    count = int(words[0])
    environment = dict(word.partition(b"=")[::2] for word in words[2 + count :])
    return Start(words[2 : 2 + count], words[1], environment, (streams[0], streams[1], streams[2]))


def announce_worker(connection: socket.socket) -> bool:
    """In the fork: hand the launcher this process's pidfd and wait for its leave to run. False: there is no launcher."""
    pidfd = os.pidfd_open(os.getpid())
    connection.setblocking(True)
    try:
        socket.send_fds(connection, [b"worker"], [pidfd])
        return connection.recv(len(GO)) == GO
    except ConnectionError:
        return False
    finally:
        os.close(pidfd)


def refuse(connection: socket.socket, reason: str) -> None:
    tell(connection, reason.encode()[:4000])


def tell(connection: socket.socket, message: bytes) -> None:
    """Send without ever waiting; a launcher that is gone has nothing to be told."""
    with contextlib.suppress(ConnectionError, BlockingIOError):
        connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
