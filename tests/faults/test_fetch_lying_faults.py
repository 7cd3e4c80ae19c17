"""The fetch against answers that are not what was asked for, and releases that are not what the bucket holds. What a user would
lose: a model with a wrong byte in it that nobody notices."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fetching import (
    FILES,
    MIB,
    cache_at,
    entry_of,
    fetch,
    holds,
    release_of,
    release_with,
    some_bytes,
    wrong_blobs,
)
from tests.proxies import (
    Answer,
    certificate_for_loopback,
    lying_proxy_to,
)
from tests.services import MinioServer
from weightless.errors import (
    AccessDenied,
    FetchFailed,
    NotFound,
    StoreUnavailable,
    VerificationFailed,
    WeightlessError,
)


def flip_a_bit(answer: Answer) -> None:
    body = bytearray(answer.body)
    if len(body) > 1000:
        body[len(body) // 2] ^= 4
    answer.body = bytes(body)


def end_early(answer: Answer) -> None:
    answer.body, answer.cut = answer.body[: len(answer.body) // 2], True


def say_200_to_a_range(answer: Answer) -> None:
    if b" 206 " in answer.head:
        answer.head = answer.head.replace(b" 206 Partial Content", b" 200 OK", 1)
        answer.head = re.sub(rb"(?i)content-range:[^\r]*\r\n", b"", answer.head)


def send_the_whole_to_a_range(answer: Answer) -> None:
    if b" 206 " in answer.head:
        say_200_to_a_range(answer)
        answer.body = FILES["model.safetensors"]
        answer.head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(answer.body), answer.head)


def send_another_range(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)content-range: bytes \d+", b"Content-Range: bytes 7", answer.head)


def send_more(answer: Answer) -> None:
    answer.body += b"more"
    answer.head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(answer.body), answer.head)


def say_another_version(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)x-amz-version-id: [^\r]*", b"x-amz-version-id: another", answer.head)


def forget_the_length(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)content-length:[^\r]*\r\n", b"", answer.head)
    answer.cut = True


def be_busy(answer: Answer) -> None:
    answer.body = b"<Error><Code>SlowDown</Code></Error>"
    answer.head = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n" % len(answer.body)


def speak_nonsense(answer: Answer) -> None:
    answer.head, answer.body, answer.cut = b"\x00\x01 nothing that HTTP knows\r\n\r\n", b"", True


LIES: dict[str, tuple[Callable[[Answer], None], type[WeightlessError], str]] = {
    "a flipped bit": (flip_a_bit, VerificationFailed, "required BLAKE3"),
    "a truncated body": (end_early, FetchFailed, "bytes early"),
    "a 200 to a range": (say_200_to_a_range, FetchFailed, "required HTTP 206, found 200"),
    "the whole object to a range": (send_the_whole_to_a_range, FetchFailed, "required HTTP 206, found 200"),
    "another range": (send_another_range, FetchFailed, "required bytes "),
    "a longer body": (send_more, FetchFailed, "found Content-Length"),
    "another version": (say_another_version, FetchFailed, "required this version, found another"),
    "no length": (forget_the_length, FetchFailed, "required a Content-Length"),
    "a busy store": (be_busy, FetchFailed, "SlowDown"),
    "nonsense": (speak_nonsense, FetchFailed, "gave up"),
}


@pytest.mark.parametrize("name", LIES)
def test_one_answer_that_lies_is_caught_and_asked_again(minio_server: MinioServer, tmp_path: Path, name: str) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    lie = LIES[name][0]
    lied = threading.Event()

    def once(answer: Answer) -> None:
        before = (answer.head, answer.body, answer.cut)
        if not lied.is_set() and len(answer.body) == MIB:  # a part of the large file
            lie(answer)
            if (answer.head, answer.body, answer.cut) != before:
                lied.set()

    with lying_proxy_to(minio_server, once) as proxy:
        result = fetch(minio_server.settings_at(proxy.endpoint), cache, release)
    assert lied.is_set()
    assert result.retries >= 1
    assert holds(cache, release, FILES)
    assert wrong_blobs(cache) == []


@pytest.mark.parametrize("name", LIES)
def test_answers_that_always_lie_end_in_an_error_and_never_in_a_file(
    minio_server: MinioServer, tmp_path: Path, name: str
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    lie, error, words = LIES[name]
    with lying_proxy_to(minio_server, lie) as proxy, pytest.raises(error, match=words):
        fetch(minio_server.settings_at(proxy.endpoint), cache, release, fetch_attempts=3)
    assert not cache.is_complete(release)
    assert wrong_blobs(cache) == []
    assert not (cache.folder(release) / "model.safetensors").exists()

    fetch(minio_server.settings, cache, release)  # what was left behind spoils nothing
    assert holds(cache, release, FILES)


def test_a_version_that_was_deleted_is_named(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    version = release.location.versions["m/b/c.bin"]
    minio_server.client().remove_object("models", "m/b/c.bin", version_id=version)
    with pytest.raises(NotFound, match=rf"models/m/b/c.bin \(version {version}\).*publish the model again"):
        fetch(minio_server.settings, cache, release)


def test_wrong_keys_are_said_at_once(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    settings = minio_server.settings.model_copy(update={"s3_access_key": "nobody"})
    with pytest.raises(AccessDenied, match="nobody"):
        fetch(settings, cache, release)


@pytest.mark.parametrize("what", ["size", "digest"])
def test_a_release_that_does_not_fit_its_objects_is_refused(
    minio_server: MinioServer, tmp_path: Path, what: str
) -> None:
    body = FILES["model.safetensors"]
    version = minio_server.put("models", "m/model.safetensors", body)
    entry = entry_of("model.safetensors", body)
    wrong = {"size": entry.size + 5} if what == "size" else {"blake3": "0" * 64}
    release = release_with("m", [entry.model_copy(update=wrong)], {"m/model.safetensors": version})
    cache = cache_at(tmp_path / "cache")
    with pytest.raises((FetchFailed, VerificationFailed), match=r"m/model\.safetensors"):
        fetch(minio_server.settings, cache, release, fetch_attempts=2)
    assert wrong_blobs(cache) == []
    assert not cache.is_complete(release)


def test_names_that_people_use_and_empty_and_equal_files(minio_server: MinioServer, tmp_path: Path) -> None:
    files = {
        "with space/ümläut ☃.json": b"{}",
        "a+b=c&d%20e#f?.txt": b"signs that URLs know",
        "~tilde/…/x.bin": some_bytes(2 * MIB, 4),
        "empty": b"",
        "empty too": b"",
        "the same as x.bin": some_bytes(2 * MIB, 4),
    }
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    result = fetch(minio_server.settings, cache, release)
    assert holds(cache, release, files)
    assert result.bytes_from_store == sum(map(len, dict.fromkeys(files.values())))
    assert cache.is_complete(release)


def test_tls_with_a_ca_of_its_own(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    certificate, context = certificate_for_loopback(tmp_path)
    with lying_proxy_to(minio_server, lambda answer: None, context) as proxy:
        settings = minio_server.settings_at(proxy.endpoint)
        with pytest.raises(StoreUnavailable, match=r"not trusted.*S3_CA_BUNDLE"):
            fetch(settings, cache, release)
        result = fetch(settings.model_copy(update={"s3_ca_bundle": certificate}), cache, release)
    assert holds(cache, release, FILES)
    assert result.retries == 0
