"""Slim archives from one kept base: what another release, model or an edited handler must still change."""

import ast
import asyncio
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.agent import archive
from serve.agent.archive import HANDLER_FILE, SlimArchive, build_slim
from serve.agent.settings import ROOT
from weightless.modelfile import NodeSettings


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A handler folder of its own, with nothing kept from other tests."""
    monkeypatch.setattr(archive, "_BASES", {})
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "handler", tmp_path / "handler", ignore=ignored))


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as mar:
        assert mar.testzip() is None
        assert len(mar.namelist()) == len(set(mar.namelist()))
        return {name: mar.read(name) for name in mar.namelist()}


def build(handler: Path, to: Path, model: str = "m", version: str = "v1", **node: Any) -> dict[str, bytes]:
    size = asyncio.run(build_slim(SlimArchive(model, version, NodeSettings(**node)), handler, to))
    assert size == to.stat().st_size
    return entries(to)


async def no_archiver(*_: object) -> Path:
    raise AssertionError("the archiver ran again")


def test_another_release_needs_no_archiver_and_says_its_own_name(
    handler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(handler, tmp_path / "a.mar")
    monkeypatch.setattr(archive, "archiver", no_archiver)
    other = build(handler, tmp_path / "b.mar", model="n", version="v2", workers=3)
    manifest = json.loads(other["MAR-INF/MANIFEST.json"])["model"]
    assert (manifest["modelName"], manifest["modelVersion"], manifest["handler"]) == ("n", "v2", HANDLER_FILE)
    config = yaml.safe_load(other["model-config.yaml"])
    assert (config["weightless"]["model"], config["minWorkers"]) == ("n", 3)
    assert {name for name in first if first[name] != other[name]} == {"model-config.yaml", "MAR-INF/MANIFEST.json"}
    assert {"minio_handler.py", "tasks/__init__.py", "weightless/__init__.py"} <= first.keys() == other.keys()


def test_it_holds_every_module_of_ours_that_its_modules_import(handler: Path, tmp_path: Path) -> None:
    held = {name for name in build(handler, tmp_path / "a.mar") if name.endswith(".py")}
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in held}
    assert not {"weightless.publish", "weightless.lanes", "weightless.modelfile", "weightless.fetch.readback"} & modules
    with zipfile.ZipFile(tmp_path / "a.mar") as mar:
        for name in held:
            imports = [node for node in ast.walk(ast.parse(mar.read(name))) if isinstance(node, ast.ImportFrom)]
            named = {str(node.module) for node in imports} | {
                f"{node.module}.{alias.name}"
                for node in imports
                for alias in node.names
                if (ROOT / str(node.module).replace(".", "/") / f"{alias.name}.py").is_file()
            }
            assert {module for module in named if module.split(".")[0] == "weightless"} <= modules, name


def test_an_edited_handler_is_in_the_next_archive(handler: Path, tmp_path: Path) -> None:
    build(handler, tmp_path / "a.mar")
    for edited in (HANDLER_FILE, "tasks/__init__.py"):
        (handler / edited).write_text("# edited\n")
        assert build(handler, tmp_path / "a.mar")[edited] == b"# edited\n"
    (handler / "replies.py").unlink()
    assert "replies.py" not in build(handler, tmp_path / "a.mar")


def test_a_models_own_packages_are_in_its_archive_alone(handler: Path, tmp_path: Path) -> None:
    assert "requirements.txt" not in build(handler, tmp_path / "a.mar")
    assert build(handler, tmp_path / "a.mar", requirements=["tiny==1"])["requirements.txt"] == b"tiny==1\n"
    assert "requirements.txt" not in build(handler, tmp_path / "a.mar")


def test_it_is_built_beside_its_place_and_nothing_is_left(
    handler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an agent that is killed meanwhile leaves lies where the next one looks."""
    archiver, places = archive.archiver, []

    async def noted(model: str, version: str, file: Path, *rest: Any) -> Path:
        places.append(file.parent.parent)
        return await archiver(model, version, file, *rest)

    monkeypatch.setattr(archive, "archiver", noted)
    build(handler, tmp_path / "store" / "m.mar")
    assert places == [tmp_path / "store"]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["m.mar"]


def test_only_a_few_bases_are_kept(handler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_KEPT", 1)
    for number in range(3):
        (handler / HANDLER_FILE).write_text(f"# {number}\n")
        build(handler, tmp_path / "a.mar")
    assert len(archive._BASES) == 1
