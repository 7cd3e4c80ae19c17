"""A release's identity: the digest follows the content and nothing else."""

import json

import pytest

from weightless.errors import InvalidRelease
from weightless.release import Alias, Canary, Content, FileEntry, Location, Release, ReleaseSettings, digest_of


def content(**changes: object) -> Content:
    file = FileEntry(path="config.json", size=3, blake3="a" * 64, sha256="b" * 64)
    values = {
        "model": "tiny",
        "created": "2026-11-22T16:10:03Z",
        "source": {"huggingface": "org/tiny", "revision": "0" * 40},
        "files": (file,),
        "settings": ReleaseSettings(task="text-generation", generation={"max_length": 200, "top_k": 10}),
    }
    return Content.model_validate(values | changes)


def release(**changes: object) -> Release:
    return Release.make("v1", content(**changes), Location(bucket="models", versions={"tiny/config.json": "id"}))


def test_the_digest_is_of_the_content_as_written() -> None:
    document = json.loads(release().to_json())
    assert document["digest"] == digest_of(document["content"]) == release().digest
    document["location"]["versions"]["tiny/config.json"] = "elsewhere"
    moved = Release.from_json("v1", json.dumps(document).encode())
    assert moved.digest == release().digest


def test_a_field_that_this_version_does_not_know_keeps_its_digest() -> None:
    document = json.loads(release().to_json())
    document["content"]["settings"]["pooling"] = "mean"
    document["digest"] = digest_of(document["content"])
    assert Release.from_json("v1", json.dumps(document).encode()).digest == document["digest"]


def test_what_changes_the_answers_changes_the_digest() -> None:
    other = FileEntry(path="config.json", size=3, blake3="c" * 64, sha256="b" * 64)
    digests = {
        release().digest,
        release(files=(other,)).digest,
        release(settings=ReleaseSettings(task="embeddings")).digest,
    }
    assert len(digests) == 3


def test_the_same_model_published_later_is_the_same_model() -> None:
    assert content().same_model_as(content(created="2030-01-01T00:00:00Z", source={"folder": "there"}))
    assert not content().same_model_as(content(settings=ReleaseSettings(task="embeddings")))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"null", b"\xff", b'{"schema": 1}', b'{"schema": 1, "content": NaN}']
)
def test_junk_is_not_a_manifest(raw: bytes) -> None:
    with pytest.raises(InvalidRelease, match="release v1"):
        Release.from_json("v1", raw)


def test_two_files_that_cannot_both_exist_are_refused() -> None:
    document = json.loads(release().to_json())
    document["content"]["files"].append({**document["content"]["files"][0], "path": "config.json/inside"})
    document["digest"] = digest_of(document["content"])
    with pytest.raises(InvalidRelease, match="both a file and the folder"):
        Release.from_json("v1", json.dumps(document).encode())


def test_an_alias_only_points_at_a_written_manifest() -> None:
    with pytest.raises(InvalidRelease, match="never written"):
        Alias.of(release())
    written = release().model_copy(update={"manifest_version": "m1"})
    alias = Alias.of(written, by="ada")
    assert Alias.from_json("tiny", alias.to_json()) == alias
    with pytest.raises(InvalidRelease, match="tiny/serving"):
        Alias.from_json("tiny", b'{"release": "latest"}')


def test_an_alias_with_a_canary_comes_back_and_one_without_is_written_as_ever() -> None:
    written = release().model_copy(update={"manifest_version": "m"})
    plain = Alias.of(written, by="ada")
    assert b"canary" not in plain.to_json()
    other = Canary(release="v9", digest=f"blake3:{'9' * 64}", manifest_version="n", percent=10)
    tried = Alias.of(written, "ada", other)
    assert Alias.from_json("tiny", tried.to_json()) == tried
    for wrong in (b'"percent":0', b'"percent":100', b'"percent":"all"'):
        with pytest.raises(InvalidRelease, match=r"canary\.percent"):
            Alias.from_json("tiny", tried.to_json().replace(b'"percent":10', wrong))
    with pytest.raises(ValueError, match="a canary other than the release that is served"):
        Alias.of(written, "ada", Canary.of(written, 10))
