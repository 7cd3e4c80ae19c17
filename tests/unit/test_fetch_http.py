"""The little HTTP that the fetch speaks, against a socket that says what a test wants it to say."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from weightless.fetch.http import BadAnswer, Head, HttpConnection


def ask(connection: HttpConnection, target: str, headers: dict[str, str]) -> Head:
    connection.send(target, headers)
    return connection.head()


class Speaker:
    """Answers the nth connection with the nth script: bytes to send after each request, then it closes."""

    def __init__(self, *scripts: list[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def connection(self) -> HttpConnection:
        return HttpConnection("127.0.0.1", self._listener.getsockname()[1], 5, None)

    def _serve(self) -> None:
        for script in self._scripts:
            client, _ = self._listener.accept()
            with client:
                for answer in script:
                    asked = b""
                    while not asked.endswith(b"\r\n\r\n"):
                        asked += client.recv(1 << 16)
                    self.requests.append(asked)
                    client.sendall(answer)


@pytest.fixture
def buffer() -> Iterator[memoryview]:
    yield memoryview(bytearray(100))


def test_answers_come_one_after_the_other_on_one_connection(buffer: memoryview) -> None:
    speaker = Speaker(
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A:  b \r\n\r\nabc",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial Content\r\ncontent-length: 2\r\n\r\nde",
        ]
    )
    connection = speaker.connection()
    head = ask(connection, "/x?y=z", {"Host": "h", "Range": "bytes=0-2"})
    assert (head.status, head.length, head.headers["x-a"]) == (200, 3, "b")
    assert bytes(buffer[: connection.readinto(buffer[:3])]) == b"abc"
    head = ask(connection, "/", {})
    assert (head.status, head.length) == (206, 2)
    assert bytes(buffer[: connection.readinto(buffer[:2])]) == b"de"
    assert speaker.requests[0] == b"GET /x?y=z HTTP/1.1\r\nHost: h\r\nRange: bytes=0-2\r\n\r\n"


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
def test_a_connection_that_the_server_will_close_is_not_used_again(first: bytes) -> None:
    speaker = Speaker([first], [b"HTTP/1.1 204 No Content\r\n\r\n"])
    connection = speaker.connection()
    assert ask(connection, "/", {}).status == 200
    assert ask(connection, "/", {}).status == 204


@pytest.mark.parametrize(
    "length", [b"-1", b"1e3", b"0x10", b"", b"1,1", "\u0663".encode("latin-1", "replace"), b"\xb2"]
)
def test_a_length_that_is_no_number_is_no_length(length: bytes) -> None:
    speaker = Speaker([b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n"])
    assert ask(speaker.connection(), "/", {}).length is None


def test_a_chunked_body_has_no_length() -> None:
    speaker = Speaker([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"])
    assert ask(speaker.connection(), "/", {}).length is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1",
        b"\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 201 + b"\r\n",
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        ask(Speaker([answer]).connection(), "/", {})


@given(st.binary(max_size=200))
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_answer_or_are_refused(answer: bytes) -> None:
    connection = Speaker([answer]).connection()
    try:
        assert 200 <= ask(connection, "/", {}).status <= 999 or answer.startswith(b"HTTP/1.")
    except (BadAnswer, ConnectionError):
        pass
    finally:
        connection.close()


def test_abort_ends_a_read_in_another_thread(buffer: memoryview) -> None:
    waiting = threading.Event()

    class Silent(Speaker):
        def _serve(self) -> None:
            client, _ = self._listener.accept()
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
            waiting.wait(10)

    connection = Silent().connection()
    assert ask(connection, "/", {}).length == 3
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(connection.readinto(buffer[:3])))
    reader.start()
    connection.abort()
    reader.join(5)
    waiting.set()
    assert got == [0]


def test_a_head_that_comes_a_byte_at_a_time_is_given_up() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    gone = threading.Event()

    def dribble() -> None:
        client, _ = listener.accept()
        with client:
            while not gone.wait(0.05):
                client.sendall(b"H")

    threading.Thread(target=dribble, daemon=True).start()
    connection = HttpConnection("127.0.0.1", listener.getsockname()[1], 0.3, None)
    with pytest.raises(BadAnswer, match=r"within 0\.3 s, found \d+ bytes"):
        ask(connection, "/", {})
    gone.set()
    connection.close()
