"""Packed layers: the profile `throughput` must give the answers of the same weights unpacked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tasks import load_task
from tasks.shared.contract import Node
from tasks.shared.packed import PackedLinear, can_pack, pack
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_causal, make_classifier

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch is built without oneDNN, so nothing is packed")


@pytest.mark.parametrize("kind", ["falcon", "llama"])
def test_a_packed_model_computes_the_same(tmp_path: Path, kind: str) -> None:
    folder = make_causal(tmp_path, kind)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    packed = AutoModelForCausalLM.from_pretrained(folder).eval()
    layers = sum(isinstance(module, torch.nn.Linear) for module in plain.modules())
    assert pack(packed) == layers > 8
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == layers
    assert (packed.dtype, packed.device) == (plain.dtype, plain.device)
    for rows, columns in ((1, 1), (1, 7), (5, 1), (33, 3)):
        ids = torch.randint(5, 300, (rows, columns))
        with torch.inference_mode():
            torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_bias_is_added(tmp_path: Path) -> None:
    linear = torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(linear)
    rows = torch.randn(2, 5, 8)
    expected = linear(rows)
    assert pack(model) == 1
    torch.testing.assert_close(model(rows), expected)


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(rows)

    model = torch.nn.Sequential(Doubled(4, 4), torch.nn.Linear(4, 4).to(torch.bfloat16))
    assert pack(model) == 0


def test_the_profile_throughput_packs_and_says_so_and_the_other_stays_mapped(tmp_path: Path) -> None:
    folder = make_causal(tmp_path / "llm", "falcon", "bfloat16")
    body = {"input": "the quick brown", "parameters": {"do_sample": False, "max_new_tokens": 12}}

    def answer(node: Node) -> tuple[Any, Any]:
        task: Any = load_task("text-generation", folder, {}, node)
        return task.run([task.parse(body)], lambda events: None)[0], task

    expected, plain = answer(Node(dtype="float32"))
    found, packed = answer(Node(profile="throughput"))
    assert found == expected
    assert "packed" in packed.facts["dtype_reason"] and "packed" not in plain.facts["dtype_reason"]
    scored: Any = load_task(
        "text-classification", make_classifier(tmp_path / "bert", ["a", "b"]), {}, Node(profile="throughput")
    )
    assert scored.run([scored.parse({"input": "a text"})], lambda events: None)
