#!/usr/bin/env -S python3 -IS
"""Stands where TorchServe expects a Python interpreter: has the zygote fork the worker, and leaves when the worker does.

Started as `python3 -IS`, with C modules only (`socket`, `signal`, `json` and their like cost 5 to 10 ms each, of the 200 that a
start takes). The agent starts its fetches through it too. Anything else, and any start that the zygote refuses or is not there
for, becomes the real interpreter: TorchServe then has exactly what it would have had without us. The protocol is told in
protocol.py.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import sys

HELLO_S = 10.0  # a zygote answers in milliseconds; one that is stuck must not hold a start up for long
PATIENCE_S = 110.0  # one that says it is importing answers when it is done; startup timeouts are 120 s or more
FORKED = ("/ts/model_service_worker.py", "/serve/fetching.py")  # the scripts that a zygote may know
FORWARDED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2)


def ask(path: str, arguments: list[str]) -> tuple[_socket.socket, int]:
    """Have a worker forked; the connection that will tell its exit code, and its pidfd. OSError: there is no worker."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.settimeout(HELLO_S)
    connection.connect(path)
    environment = [name + b"=" + value for name, value in os.environb.items()]
    directory = os.getcwdb()  # noqa: PTH109  pathlib takes 8 ms to import
    words = [b"%d" % len(arguments), directory, *map(os.fsencode, arguments), *environment]
    streams = b"".join(stream.to_bytes(4, sys.byteorder) for stream in (0, 1, 2))
    connection.sendmsg([b"\0".join(words)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
    try:
        answer, passed, _, _ = connection.recvmsg(4096, _socket.CMSG_SPACE(4))
    except TimeoutError:
        if not os.path.exists(f"{path}.importing"):  # noqa: PTH110
            raise OSError(f"required an answer within {HELLO_S:g} s, found the zygote stuck") from None
        connection.settimeout(PATIENCE_S - HELLO_S)
        answer, passed, _, _ = connection.recvmsg(4096, _socket.CMSG_SPACE(4))
    if answer != b"worker" or not passed:
        raise OSError(answer.decode(errors="replace") or "it ended before it forked")
    pidfd = int.from_bytes(passed[0][2][:4], sys.byteorder)
    for number in FORWARDED:
        _signal.signal(number, lambda received, _: kill(pidfd, received))
    connection.settimeout(None)
    connection.send(b"go")  # only now may the worker run: from here on its pidfd is in our hand
    return connection, pidfd


def kill(pidfd: int, number: int) -> None:
    try:  # noqa: SIM105  contextlib takes 2 ms to import
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def follow(connection: _socket.socket, pidfd: int) -> int:
    """Wait for the worker's end; its exit code, 128+n after signal n."""
    ended = select.poll()
    ended.register(connection, select.POLLIN)
    ended.register(pidfd, select.POLLIN)
    ended.poll()
    connection.settimeout(HELLO_S)  # a zygote that is stuck tells no exit code
    try:
        told = connection.recv(16)
    except (ConnectionError, TimeoutError):
        told = b""
    if told:
        return int(told)
    # The zygote is gone, or stuck. With it the kernel kills its workers; until this one is certainly dead we must not leave,
    # since TorchServe answers our exit with another worker.
    kill(pidfd, _signal.SIGKILL)
    ended.unregister(connection)
    ended.poll()
    return 128 + 9


def main() -> None:
    arguments = sys.argv[1:]
    path = os.environ.get("WEIGHTLESS_ZYGOTE_SOCKET")
    if path and arguments and arguments[0].endswith(FORKED):
        try:
            connection, pidfd = ask(path, arguments)
        except OSError as error:
            os.write(2, f"zygote: {error}; it starts the stock way\n".encode())
        else:
            os._exit(follow(connection, pidfd))
    python = os.environ.get("WEIGHTLESS_PYTHON") or sys.executable
    os.execv(python, [python, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
