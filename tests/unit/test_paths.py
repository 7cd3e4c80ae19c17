"""Names that come from a bucket people write to must never leave the folder they belong to."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightless.errors import SettingsError, UnsafePath
from weightless.paths import checked_model, checked_path, checked_release, collisions, release_number


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "../a",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:/a",
        "c:a",
        "a\x00b",
        "a\nb",
        "\ud800",
        "x" * 256,
        "/".join(["abc"] * 300),
        "e\u0301.json",
    ],
)
def test_unsafe_names_are_refused_with_a_reason(path: str) -> None:
    with pytest.raises(UnsafePath, match="object name"):
        checked_path(path)


@pytest.mark.parametrize(
    "path", ["config.json", "1_Pooling/config.json", "mit Leerzeichen/größe.txt", "模型.bin", "...", "a..b", "-x"]
)
def test_unusual_but_safe_names_are_kept_as_they_are(path: str) -> None:
    assert checked_path(path) == path


@given(st.text(alphabet=st.sampled_from("ab./\\:\x00\n é\u0301~-")))
def test_what_is_accepted_stays_inside_the_folder(path: str) -> None:
    try:
        checked_path(path)
    except UnsafePath:
        return
    joined = os.path.normpath(Path("/cache/release") / path)
    assert joined == f"/cache/release/{path}"


def test_names_that_would_clash_on_disk() -> None:
    assert collisions(["a", "b/c", "b/d"]) is None
    assert "twice" in (collisions(["a", "b", "a"]) or "")
    assert "both a file and the folder" in (collisions(["a/b", "a"]) or "")


@pytest.mark.parametrize("name", ["", "-a", "a--coldstart", "a/b", "a..b", "a b", "x" * 97, "ä", "a-"])
def test_a_model_name_that_cannot_be_a_folder_and_a_url_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="model name"):
        checked_model(name)


def test_release_names() -> None:
    assert (checked_release("v1"), release_number("v12")) == ("v1", 12)
    for wrong in ("1", "v0", "v01", "latest", "v-1", "v1.2"):
        with pytest.raises(SettingsError, match="v1, v2"):
            checked_release(wrong)
