"""Loading: the device and dtype for each machine, a checkpoint mapped and not copied, and nothing that is not in the folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tasks import load_task
from tasks.shared.contract import Node
from tasks.shared.device import Placement, place, worker_device
from tasks.shared.loading import load_model
from transformers import modeling_utils

from tests.tiny_models import make_causal

CPU = Placement(torch.device("cpu"), "auto", None, "test")


@pytest.mark.parametrize(
    ("gpu_id", "cuda", "device", "why"),
    [
        (None, False, "cpu", "gave this worker no GPU"),
        (None, True, "cpu", "gave this worker no GPU"),
        (2, True, "cuda:2", "gave this worker GPU 2"),
        (0, False, "cpu", "cannot use CUDA"),
    ],
)
def test_the_worker_runs_where_torchserve_says(gpu_id: int | None, cuda: bool, device: str, why: str) -> None:
    found, reason = worker_device(gpu_id, cuda)
    assert found == device
    assert why in reason


@pytest.mark.parametrize(
    ("node", "dtype", "device_map"),
    [
        (Node(), "auto", None),
        (Node(profile="throughput"), torch.float32, None),
        (Node(dtype="float16"), torch.float16, None),
        (Node(device="cuda:1"), torch.bfloat16, {"": "cuda:1"}),
        (Node(device="cuda:1", profile="throughput"), torch.bfloat16, {"": "cuda:1"}),
        (Node(device="cuda:0", dtype="float32"), torch.float32, {"": "cuda:0"}),
        (Node(device="cuda:0", device_map="auto"), torch.bfloat16, "auto"),
        (Node(device_map="auto"), "auto", "auto"),
    ],
)
def test_dtype_and_device_map(node: Node, dtype: Any, device_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    placement = place(node)
    assert (placement.dtype, placement.device_map, placement.device) == (dtype, device_map, torch.device(node.device))


def test_a_gpu_without_bfloat16_gets_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert place(Node(device="cuda:0")).dtype == torch.float16


def private_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def test_weights_are_mapped_in_the_checkpoints_own_dtype_and_copied_in_another(tmp_path: Path) -> None:
    """What lets several workers share one copy: 32 MiB of bfloat16 weights must not become private memory."""
    folder = make_causal(tmp_path, "llama", "bfloat16", hidden_size=1024, num_hidden_layers=8, intermediate_size=1024)
    size = (folder / "model.safetensors").stat().st_size >> 10
    load_model(folder, CPU, False, "ForCausalLM", "AutoModelForCausalLM")  # what the first load allocates stays
    before = private_kib()
    mapped = load_model(folder, CPU, False, "ForCausalLM", "AutoModelForCausalLM")
    grown = private_kib() - before
    assert mapped.dtype == torch.bfloat16
    assert grown < size / 4, f"{grown} KiB of private memory for {size} KiB of weights"
    task: Any = load_task("text-generation", folder, {}, Node(profile="throughput"))
    assert task.facts["dtype"] == "float32"
    assert private_kib() - before > size


@pytest.mark.parametrize("said", ["float32", None])
def test_the_weights_files_say_their_dtype_and_not_the_config(tmp_path: Path, said: str | None) -> None:
    """A config that was not changed with the weights would cost each worker a private copy of twice their size."""
    folder = make_causal(tmp_path, "falcon", "bfloat16")
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": said}))
    task: Any = load_task("text-generation", folder, {}, Node())
    assert task.facts["dtype"] == "bfloat16"
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: tensor.float() if "layernorm" in name else tensor for name, tensor in tensors.items()}
    save_file(mixed, folder / "model.safetensors", {"format": "pt"})
    task = load_task("text-generation", folder, {}, Node())
    assert task.facts["dtype"] == "bfloat16", "a few norms in float32 do not decide"


def test_device_map_goes_through_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Any] = []
    real = modeling_utils._get_device_map

    def spy(model: Any, wanted: Any, *more: Any) -> Any:
        placed.append((wanted, real(model, wanted, *more)))
        return placed[-1][1]

    monkeypatch.setattr(modeling_utils, "_get_device_map", spy)
    task: Any = load_task("text-generation", make_causal(tmp_path, "falcon"), {}, Node(device_map="auto"))
    assert placed == [("auto", {"": "cpu"})]
    assert task.run([task.parse({"input": "A", "parameters": {"max_new_tokens": 2}})], lambda events: None)


def test_a_folder_that_lacks_weights_is_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    folder = make_causal(tmp_path, "falcon")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "dense" in name)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=f"1 missing .*{gone}"):
        load_task("text-generation", folder, {}, Node())


def test_a_folder_without_config_or_with_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"required config\.json in the model folder, found none"):
        load_task("text-generation", tmp_path, {}, Node())
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: required a JSON object, found a list"):
        load_task("text-generation", tmp_path, {}, Node())


REMOTE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import FalconConfig, FalconForCausalLM
class OwnConfig(FalconConfig):
    model_type = "its-own-kind"
class OwnModel(FalconForCausalLM):
    config_class = OwnConfig
"""


def own_code(folder: Path, model_type: str, architecture: str) -> Path:
    """A folder that brings Python of its own, as tiiuae/falcon-7b does."""
    make_causal(folder, "falcon")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    config |= {"model_type": model_type, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(REMOTE)
    return folder


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers copies a folder's own code before it runs it."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "modules"


def test_a_folders_own_code_runs_only_if_release_and_node_both_say_so(tmp_path: Path, modules_cache: Path) -> None:
    folder = own_code(tmp_path / "own-kind", "its-own-kind", "OwnModel")
    for settings, node in (
        ({"trust_remote_code": True}, Node()),
        ({}, Node(allow_remote_code=True)),
        ({"trust_remote_code": False}, Node(allow_remote_code=True)),
    ):
        with pytest.raises(
            ValueError, match=r"required trust_remote_code in the release's settings and ALLOW_REMOTE_CODE=1"
        ):
            load_task("text-generation", folder, settings, node)
    assert not list(modules_cache.rglob("ran"))
    task: Any = load_task("text-generation", folder, {"trust_remote_code": True}, Node(allow_remote_code=True))
    assert task.facts["architecture"] == "OwnModel"
    assert list(modules_cache.rglob("ran"))


def test_a_falcon_that_brings_code_is_loaded_natively(tmp_path: Path, modules_cache: Path) -> None:
    folder = own_code(tmp_path / "falcon", "falcon", "FalconForCausalLM")
    task: Any = load_task("text-generation", folder, {"trust_remote_code": True}, Node())
    assert task.facts["architecture"] == "FalconForCausalLM"
    assert not list(modules_cache.rglob("ran"))
