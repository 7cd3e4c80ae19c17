"""A folder that is not a complete model is refused before anything is published, with what to do about it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from seeding.folder import Folder, check, is_part, local_folder
from seeding.task import infer_task, release_settings

from weightless.errors import InvalidFolder, SettingsError, UnsafePath
from weightless.modelfile import ReleaseOverrides

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 952080\n"
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(samples: Path, tmp_path: Path) -> Path:
    """A folder of our own with falcon-tiny in it."""
    return Path(shutil.copytree(samples / "falcon-tiny", tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_samples_are_complete(samples: Path) -> None:
    for name, task in (
        ("falcon-tiny", "text-generation"),
        ("falcon-tiny-v2", "text-generation"),
        ("minilm", "embeddings"),
    ):
        folder = local_folder(samples / name)
        check(folder)
        assert infer_task(folder) == task


def test_what_git_and_caches_left_is_no_part_of_the_model(model: Path) -> None:
    before = set(local_folder(model).files)
    for path in (".git/config", ".cache/huggingface/x.json", "sub/.git/HEAD", ".gitattributes", "__pycache__/a.pyc"):
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_text("x")
    assert set(local_folder(model).files) == before
    assert not is_part("sub/.git/HEAD")
    assert is_part("1_Pooling/config.json")
    assert is_part("gitignore.json")


def empty(root: Path) -> None:
    for path in root.iterdir():
        path.unlink()


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (empty, r"required a model, found no files"),
    "no config": (lambda root: (root / "config.json").unlink(), r"required config\.json, found generation_config"),
    "config is a list": (
        lambda root: (root / "config.json").write_text("[]"),
        r"config\.json: required a JSON object, found a list",
    ),
    "config is cut": (lambda root: os.truncate(root / "config.json", 100), r"config\.json: required JSON"),
    "no tokenizer": (lambda root: (root / "tokenizer.json").unlink(), r"required a tokenizer .*found none; copy"),
    "only pickles": (
        lambda root: [path.rename(path.with_suffix(".bin")) for path in root.glob("*.safetensors")],
        r"required weights as \*\.safetensors, found .*\.bin.*; convert them",
    ),
    "a shard is missing": (
        lambda root: (root / SHARD).unlink(),
        rf"{INDEX}: required 2 shards, missing {SHARD}; fetch what is missing",
    ),
    "a shard is truncated": (
        lambda root: os.truncate(root / SHARD, 690_000),
        rf"{SHARD}: required 691024 bytes by its header, found 690000; .*truncated",
    ),
    "a shard is cut in its header": (
        lambda root: os.truncate(root / SHARD, 20),
        rf"{SHARD}: required a header of \d+ bytes, found 12",
    ),
    "a shard is empty": (
        lambda root: os.truncate(root / SHARD, 0),
        rf"{SHARD}: required a safetensors header, found 0 bytes",
    ),
    "a shard is too long": (
        lambda root: (root / SHARD).open("ab").write(b"x"),
        rf"{SHARD}: required 691024 bytes by its header, found 691025",
    ),
    "a shard is a web page": (
        lambda root: (root / SHARD).write_bytes(b"\x10\0\0\0\0\0\0\0" + b"<html> not found </html>"),
        rf"{SHARD}: required a safetensors header, found something else",
    ),
    "a shard is a pointer": (
        lambda root: (root / SHARD).write_text(LFS),
        rf"git-lfs pointers that were never pulled: {SHARD}; run `git lfs pull`",
    ),
    "the index is missing": (
        lambda root: (root / INDEX).unlink(),
        rf"required model\.safetensors or {INDEX}, found .* without an index",
    ),
    "the index is empty": (lambda root: (root / INDEX).write_text("{}"), r"required a weight_map, found none"),
    "the index is of another revision": (
        lambda root: edit(root / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": SHARD})),  # type: ignore[attr-defined]
        r"required tensors that their shards do not hold: lm_head\.weight",
    ),
    "a link leads nowhere": (
        lambda root: (root / "x.json").symlink_to("/nowhere"),
        r"x\.json: required a file, found a link",
    ),
    "a folder is a link": (
        lambda root: (root / "more").symlink_to(root.parent),
        r"more: required a folder, found a link",
    ),
}


@pytest.mark.parametrize("case", sorted(BREAKS))
def test_a_broken_folder_is_refused_with_what_to_do(model: Path, case: str) -> None:
    damage, message = BREAKS[case]
    damage(model)
    with pytest.raises(InvalidFolder, match=message):
        check(local_folder(model))


@pytest.mark.parametrize(("name", "found"), [("nothing", "found nothing"), ("config.json", "found a file")])
def test_a_folder_that_is_none_is_refused(model: Path, name: str, found: str) -> None:
    with pytest.raises(InvalidFolder, match=found):
        local_folder(model / name)


def test_weights_in_other_formats_are_left_out_also_when_they_were_never_pulled(model: Path) -> None:
    """As in a git-lfs clone of which only the safetensors were pulled."""
    before = local_folder(model)
    (model / "pytorch_model-00001-of-00002.bin").write_text(LFS)
    (model / "coreml" / "w.mlpackage").mkdir(parents=True)
    (model / "coreml" / "w.mlpackage" / "weights.json").write_text("{}")
    folder = local_folder(model)
    check(folder)
    assert folder.files == before.files
    assert set(folder.left_out) == {"pytorch_model-00001-of-00002.bin", "coreml/w.mlpackage/weights.json"}


def test_a_model_one_level_down_is_pointed_at(model: Path) -> None:
    with pytest.raises(InvalidFolder, match=r"did you mean the folder model\?"):
        check(local_folder(model.parent))


def test_code_of_its_own_may_bring_the_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    check(local_folder(model), trust_remote_code=True)


def test_a_name_that_other_systems_cannot_hold_is_refused(model: Path) -> None:
    (model / "a\\b.json").write_text("{}")
    with pytest.raises(UnsafePath, match="backslash"):
        local_folder(model)


def test_links_to_files_are_followed_as_a_hub_cache_has_them(model: Path) -> None:
    moved = model.parent / "blob"
    (model / SHARD).rename(moved)
    (model / SHARD).symlink_to(moved)
    folder = local_folder(model)
    check(folder)
    assert folder.files[SHARD] == moved.stat().st_size


def with_config(config: dict[str, object], *others: str) -> Folder:
    raw = json.dumps(config).encode()
    return Folder("folder", {"config.json": len(raw), **dict.fromkeys(others, 0)}, lambda path, offset, length: raw)


@pytest.mark.parametrize(
    ("config", "others", "task"),
    [
        ({"architectures": ["FalconForCausalLM"]}, (), "text-generation"),
        ({"architectures": ["GPT2LMHeadModel"]}, (), "text-generation"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, (), "embeddings"),
        ({"architectures": ["MistralModel"], "model_type": "mistral"}, ("modules.json",), "embeddings"),
    ],
)
def test_the_task_is_told_by_the_config(config: dict[str, object], others: tuple[str, ...], task: str) -> None:
    assert infer_task(with_config(config, *others)) == task


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": "x"},
        {"architectures": ["MistralModel"]},
    ],
)
def test_a_task_that_cannot_be_told_is_asked_for(config: dict[str, object]) -> None:
    with pytest.raises(InvalidFolder, match=r"cannot tell .* release\.task .* text-generation, .*, reranking"):
        infer_task(with_config(config))


def test_settings_of_a_release_merge_file_and_defaults() -> None:
    folder = with_config({"architectures": ["FalconForCausalLM"]})
    assert release_settings(folder, ReleaseOverrides()).generation == {
        "max_length": 200,
        "top_k": 10,
        "do_sample": True,
    }
    overrides = ReleaseOverrides(generation={"top_k": 5, "temperature": 0.7})
    assert release_settings(folder, overrides).generation == {
        "max_length": 200,
        "top_k": 5,
        "do_sample": True,
        "temperature": 0.7,
    }
    assert release_settings(folder, ReleaseOverrides(task="embeddings")).task == "embeddings"
    assert release_settings(folder, ReleaseOverrides(task="embeddings"), "text-generation").task == "text-generation"
    assert release_settings(folder, ReleaseOverrides(), "word-count").task == "word-count"  # a task of the node's own
    with pytest.raises(SettingsError, match=r"required text-generation, .* in lower case, found 'Word_Count'"):
        release_settings(folder, ReleaseOverrides(), "Word_Count")
    golden = {"input": "The falcon", "output": "flies"}
    assert release_settings(folder, ReleaseOverrides(golden=golden)).golden == golden
    with pytest.raises(SettingsError, match=r"golden: required .* as `output`, found input, outputs: any answer"):
        release_settings(folder, ReleaseOverrides(golden={"input": "The falcon", "outputs": "flies"}))
