"""The commands on a real MinIO: what a person sees, what a machine gets, and that every mistake is one clear sentence."""

import json
from pathlib import Path

import pytest

from tests.commands import command, run
from tests.services import MinioServer, free_port
from weightless.release import Release

# ---- what there is


def test_an_empty_store_says_how_to_begin(minio_server: MinioServer) -> None:
    shown = run(minio_server, "models")
    assert (shown.status, shown.out) == (0, "No models yet. Publish one: make seed MODEL=falcon-tiny\n")
    assert run(minio_server, "models", "--json").json == []


def test_models_are_listed_in_columns_and_as_json(minio_server: MinioServer, two: tuple[Release, Release]) -> None:
    shown = run(minio_server, "models").out.splitlines()
    assert shown[0].split() == ["model", "serving", "releases", "task", "files", "size", "source"]
    assert shown[1].split() == ["tiny", "v1", "v1", "…", "v2", "text-generation", "2", "10.2", "kB", "folder", "folder"]
    (entry,) = run(minio_server, "models", "--json").json
    assert (entry["model"], entry["serving"]) == ("tiny", "v1")
    assert [one["digest"] for one in entry["releases"]] == [release.digest for release in two]
    assert run(minio_server, "models", "tiny", "--json").json == entry
    one = run(minio_server, "models", "tiny").out.splitlines()
    assert [line.split()[0] for line in one] == ["release", "v2", "v1"]
    assert "v1 ← serving" in one[2]


def test_a_release_that_was_tampered_with_is_shown_among_the_others(
    minio_server: MinioServer, two: tuple[Release, Release]
) -> None:
    document = json.loads(two[1].to_json())
    document["content"]["created"] = "2020-01-01T00:00:00Z"
    minio_server.put("releases", "tiny/v2.json", json.dumps(document).encode())
    shown = run(minio_server, "models", "tiny")
    assert shown.status == 0
    assert "v2" in shown.out
    assert "invalid" in shown.out
    assert "v1 ← serving" in shown.out
    assert "it was changed by hand" in shown.err


@pytest.mark.parametrize(
    "words", [("models", "nope"), ("history", "nope"), ("rollback", "nope"), ("promote", "nope", "v1")]
)
def test_an_unknown_model_is_one_sentence_with_what_to_do(minio_server: MinioServer, words: tuple[str, ...]) -> None:
    shown = run(minio_server, *words)
    assert (shown.status, shown.out) == (1, "")
    assert shown.err.startswith("error: model nope: ")
    assert "make seed MODEL=nope" in shown.err
    assert shown.err.count("\n") == 1


# ---- the alias


def test_promote_and_rollback_leave_their_names_in_the_history(
    minio_server: MinioServer, two: tuple[Release, Release]
) -> None:
    assert run(minio_server, "promote", "tiny", "v2", "--no-wait").out == "tiny  v1 → v2\n"
    assert run(minio_server, "promote", "tiny", "v2", "--no-wait").out == "tiny  the alias already names v2\n"
    assert run(minio_server, "rollback", "tiny", "--no-wait", SEED_BY="otto@desk").out == "tiny  v2 → v1\n"
    alias = minio_server.store().alias("tiny")
    assert alias is not None
    assert alias.alias is not None
    assert (alias.alias.release, alias.alias.digest) == ("v1", two[0].digest)
    events = run(minio_server, "history", "tiny", "--json").json
    assert [(event["release"], event["by"], event["latest"]) for event in events] == [
        ("v1", "otto@desk", True),
        ("v2", "anna@desk", False),
        ("v1", "tests", False),
    ]
    lines = run(minio_server, "history", "tiny").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["by", "otto@desk", "anna@desk", "tests"]


def test_a_canary_is_begun_changed_and_ended_and_the_history_says_so(
    minio_server: MinioServer, two: tuple[Release, Release]
) -> None:
    def said(*words: str) -> str:
        return run(minio_server, *words, "--no-wait").out

    assert said("canary", "tiny", "v2", "--percent", "10") == "tiny  v1, canary v2 10 %\n"
    assert said("canary", "tiny", "v2", "--percent", "10") == "tiny  the alias already names v1 with canary v2 10 %\n"
    assert said("canary", "tiny", "v2", "--percent", "50") == "tiny  v1, canary v2 50 %\n"
    assert said("rollback", "tiny") == "tiny  v1, canary v2 ended\n"
    assert said("canary", "tiny", "v2") == "tiny  v1, canary v2 10 %\n"
    assert said("canary", "tiny", "--percent", "0") == "tiny  v1, canary v2 ended\n"
    said("canary", "tiny", "v2")
    assert said("promote", "tiny", "v2") == "tiny  v1 → v2\n"
    assert said("rollback", "tiny") == "tiny  v2 → v1\n", "what was served before, not what was tried"
    events = run(minio_server, "history", "tiny", "--json").json
    tried = [(event["release"], (event["canary"] or {}).get("percent")) for event in events]
    assert tried == [
        ("v1", None),
        ("v2", None),
        ("v1", 10),
        ("v1", None),
        ("v1", 10),
        ("v1", None),
        ("v1", 50),
        ("v1", 10),
        ("v1", None),
    ]
    shown = run(minio_server, "history", "tiny").out.splitlines()
    assert shown[0].split() == ["when", "serving", "canary", "digest", "by"]
    assert "v2 50 %" in shown[7]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tiny", "v2", "--percent", "100"), "PERCENT: required 0 to 99, found 100"),
        (("tiny", "v1"), "required another release than the one that is served, found v1"),
        (("tiny",), "RELEASE: required the release to try"),
        (("tiny", "v7"), "there are v1, v2"),
        (("nope", "v1"), "required a release that is served"),
    ],
)
def test_a_canary_that_makes_no_sense_is_one_sentence(
    minio_server: MinioServer, two: tuple[Release, Release], words: tuple[str, ...], says: str
) -> None:
    shown = run(minio_server, "canary", *words)
    assert (shown.status, shown.out) == (1, "")
    assert says in shown.err
    assert shown.err.count("\n") == 1


def test_an_alias_that_was_spoilt_by_hand_is_shown_and_written_anew(
    minio_server: MinioServer, two: tuple[Release, Release]
) -> None:
    minio_server.put("releases", "tiny/serving", b"v2")
    shown = run(minio_server, "models")
    assert shown.status == 0
    assert "`make promote MODEL=tiny RELEASE=…` writes it anew" in shown.err
    assert run(minio_server, "rollback", "tiny", "--no-wait").status == 0
    assert minio_server.store().serving("tiny").name == "v1"
    minio_server.put("releases", "tiny/serving", b"v2")
    assert run(minio_server, "promote", "tiny", "v2", "--no-wait").status == 0
    assert minio_server.store().serving("tiny").name == "v2"
    events = run(minio_server, "history", "tiny", "--json").json
    assert [event["release"] for event in events] == ["v2", None, "v1", None, "v1"]
    assert run(minio_server, "history", "tiny").out.count("invalid") == 2


def test_there_is_nothing_to_roll_back_to_at_first(minio_server: MinioServer, two: tuple[Release, Release]) -> None:
    shown = run(minio_server, "rollback", "tiny")
    assert (shown.status, shown.out) == (1, "")
    assert "it never served anything but v1" in shown.err


def test_an_unknown_release_names_those_that_there_are(minio_server: MinioServer, two: tuple[Release, Release]) -> None:
    shown = run(minio_server, "promote", "tiny", "v9")
    assert shown.status == 1
    assert "release v9 of tiny: not in bucket releases; there are v1, v2" in shown.err


def test_without_an_agent_the_alias_moves_and_that_is_said(
    minio_server: MinioServer, two: tuple[Release, Release]
) -> None:
    shown = run(minio_server, "promote", "tiny", "v2")
    assert (shown.status, shown.out) == (0, "tiny  v1 → v2\n")
    assert "warning: the alias names v2, but no agent answers at http://127.0.0.1:" in shown.err
    again = run(minio_server, "promote", "tiny", "v1", "--json").json
    assert again == {
        "model": "tiny",
        "before": "v2",
        "release": "v1",
        "canary": None,
        "moved": True,
        "by": "anna@desk",
        "served": False,
    }


# ---- mistakes


def test_a_store_that_is_away_is_one_sentence() -> None:
    environment = {"S3_ENDPOINT": f"http://127.0.0.1:{free_port()}", "S3_ACCESS_KEY": "x", "S3_SECRET_KEY": "y"}
    shown = command(environment, "models")
    assert (shown.status, shown.out) == (1, "")
    assert "cannot be reached" in shown.err
    assert shown.err.count("\n") == 1


def test_wrong_keys_are_one_sentence_that_does_not_show_them(minio_server: MinioServer) -> None:
    shown = run(minio_server, "models", S3_SECRET_KEY="a-wrong-one")
    assert shown.status == 1
    assert "the store refused access key root-of-the-tests" in shown.err
    assert "a-wrong-one" not in shown.err


def test_no_keys_at_all_names_the_settings() -> None:
    shown = command({}, "models")
    assert shown.status == 1
    assert "required S3_ACCESS_KEY and S3_SECRET_KEY, or S3_CREDENTIALS_DIR; found neither" in shown.err


def test_no_agent_says_how_to_start_one(minio_server: MinioServer) -> None:
    for words in (("status",), ("predict", "tiny", "x"), ("mar", "tiny"), ("retry", "tiny")):
        shown = run(minio_server, *words)
        assert (shown.status, shown.out) == (1, "")
        assert "start the stack with make up" in shown.err


def test_something_else_behind_the_agents_address_is_recognised(minio_server: MinioServer) -> None:
    shown = run(minio_server, "status", AGENT_URL=minio_server.endpoint)
    assert shown.status == 1
    assert "not like the agent; is AGENT_URL right?" in shown.err


def test_credentials_come_from_the_folder_that_the_first_start_made(minio_server: MinioServer, tmp_path: Path) -> None:
    missing = command({"SECRETS_DIR": str(tmp_path), "S3_CREDENTIALS_DIR": str(tmp_path)}, "credentials")
    assert missing.status == 1
    assert "make up" in missing.err
    ours = run(minio_server, "credentials", "--json", SECRETS_DIR=str(tmp_path)).json  # a store that is not the stack's
    assert (ours["user"], ours["password"]) == (minio_server.access_key, minio_server.secret_key)
    (tmp_path / "minio").mkdir()
    (tmp_path / "minio/access_key").write_text("weightless-root")
    (tmp_path / "minio/secret_key").write_text("s3cret\n")
    known = {"SECRETS_DIR": str(tmp_path)}
    assert run(minio_server, "credentials", "--json", **known).json == {
        "user": "weightless-root",
        "password": "s3cret",
        "api-key": None,
    }
    assert run(minio_server, "credentials", "--show", "password", **known).out == "s3cret\n"
    assert run(minio_server, "credentials", "--show", "api-key", **known).status == 1
    assert run(minio_server, "credentials", "--show", "api-key", API_KEY="k").out == "k\n"
    assert "none is set" in run(minio_server, "credentials", **known).out


# ---- the node's cache


def test_the_cache_is_shown_checked_and_pruned(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    cache = {"CACHE_DIR": str(tmp_path / "cache")}
    assert "is empty" in run(minio_server, "cache", **cache).out
    assert run(minio_server, "backup", str(tmp_path / "cache")).status == 0  # a backup's folder is laid out as a cache
    entries = run(minio_server, "cache", "--json", **cache).json
    assert {(entry["release"], entry["complete"], entry["in_use"]) for entry in entries} == {
        ("v1", True, False),
        ("v2", True, False),
    }
    assert run(minio_server, "cache-verify", **cache).out == "3 files, 10.3 kB: none wrong\n"
    blob = next(iter((tmp_path / "cache/blobs/blake3").iterdir()))
    blob.write_bytes(b"\0" * blob.stat().st_size)
    wrong = run(minio_server, "cache-verify", "--json", **cache)
    assert (wrong.status, wrong.json["bad"]) == (1, [blob.name])
    assert "fetched again at the next start" in wrong.err
    assert sorted(run(minio_server, "cache-prune", "--all", "--json", **cache).json["releases"]) == [
        "tiny v1",
        "tiny v2",
    ]
    assert "is empty" in run(minio_server, "cache", **cache).out
