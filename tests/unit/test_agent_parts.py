"""Small parts of the agent: settings, keys, errors, smoke tests, reasons of failed starts, what runs on which device."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from serve import __version__
from serve.agent.auth import KeyCheck
from serve.agent.coldstart import Order
from serve.agent.errors import ApiError, from_torchserve
from serve.agent.gpu import NoUsableGpu, check_required, verdict
from serve.agent.memory import Memory
from serve.agent.settings import ROOT, AgentSettings, child_environment
from serve.agent.smoke import request_body, wrong_with
from serve.agent.starts import failure_reason, log_position, read_ledger
from serve.agent.torchserve import environment_of
from weightless.errors import SettingsError


def settings(monkeypatch: pytest.MonkeyPatch, **env: str) -> AgentSettings:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return AgentSettings.load()


# ---- settings


def test_beyond_this_machine_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"BIND=0\.0\.0\.0 .* required API_KEY"):
        settings(monkeypatch, BIND="0.0.0.0")
    assert settings(monkeypatch, BIND="0.0.0.0", API_KEY="k").key() == "k"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"GOMP_SPINCOUNT": "4000", "OPENBLAS_THREAD_TIMEOUT": "4"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "4"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_workers_threads_sleep_soon_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: dict[str, str], theirs: dict[str, str]
) -> None:
    environment = environment_of(settings(monkeypatch, **ours), tmp_path)
    assert {
        name: value for name, value in environment.items() if name.startswith(("GOMP_", "OMP_WAIT", "OPENBLAS_"))
    } == theirs


@pytest.mark.parametrize("bind", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_key(monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    assert settings(monkeypatch, BIND=bind).key() is None


def test_a_key_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    assert settings(monkeypatch, API_KEY_FILE=str(tmp_path / "key"), BIND="0.0.0.0").key() == "secret"
    with pytest.raises(SettingsError, match="API_KEY_FILE: required a readable file"):
        settings(monkeypatch, API_KEY_FILE=str(tmp_path / "none"))


def test_a_baseline_is_given_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="BASELINE_STORE together"):
        settings(monkeypatch, BASELINE_INFERENCE_URL="http://127.0.0.1:1")


def test_the_agents_secrets_are_not_its_childrens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.setenv("S3_ENDPOINT", "http://store")
    environment = child_environment({"MORE": "1"})
    assert "API_KEY" not in environment
    assert environment["S3_ENDPOINT"] == "http://store"
    assert environment["MORE"] == "1"


def test_the_version_is_the_projects() -> None:
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


# ---- keys


@pytest.mark.parametrize(
    "given", [None, "", "k", "Bearer", "Bearer ", "Bearer x", "bearer k", "Bearer k ", "Bearer \udcff"]
)
def test_a_wrong_key_is_401(given: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        KeyCheck("k").check(given)
    assert caught.value.code == 401


def test_the_right_key_and_no_key_set() -> None:
    KeyCheck("k").check("Bearer k")
    KeyCheck(None).check(None)


# ---- what TorchServe's errors mean


def torchserve_says(code: int, kind: str, message: str) -> bytes:
    return json.dumps({"code": code, "type": kind, "message": message}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "message", "code", "ours"),
    [
        (500, "InternalServerException", "Worker died.", 503, "worker_died"),
        (507, "InternalServerException", "Worker died.", 503, "worker_died"),
        (503, "ServiceUnavailableException", 'Model "m" Version v1 has no worker to serve', 503, "overloaded"),
        (404, "ModelVersionNotFoundException", "Model version: v1 does not exist", 503, "unavailable"),
        (503, "InternalServerException", "Prediction failed", 500, "prediction_failed"),
        (507, "InternalServerException", "Out of resources", 507, "out_of_memory"),
        (500, "InternalServerException", "Surprise", 502, "torchserve"),
    ],
)
def test_torchserves_errors_in_our_form(status: int, kind: str, message: str, code: int, ours: str) -> None:
    error = from_torchserve(status, torchserve_says(status, kind, message), "m", "v1")
    assert error is not None
    assert (error.code, error.type) == (code, ours)
    assert (error.retry_after_s is not None) == (code == 503)


def test_the_handlers_own_errors_pass_unchanged() -> None:
    assert from_torchserve(400, b'{"error": {"code": 400}}', "m", "v1") is None


def test_what_is_no_json_is_an_error_too() -> None:
    error = from_torchserve(500, b"<html>", "m", "v1")
    assert error is not None
    assert error.code == 502


# ---- smoke tests


@pytest.mark.parametrize(
    ("task", "answer", "fine"),
    [
        ("text-generation", [{"generated_text": "Hello there"}], True),
        ("text-generation", [{"generated_text": "  "}], False),
        ("text-generation", [], False),
        ("text-generation", {"error": {}}, False),
        ("embeddings", {"embedding": [0.5, -0.25]}, True),
        ("embeddings", {"embedding": [0.5, math.nan]}, False),
        ("embeddings", {"embedding": [0.0, 0.0]}, False),
        ("embeddings", {"embedding": []}, False),
        ("embeddings", [[0.5]], False),
        ("another-task", "anything", True),
    ],
)
def test_an_answer_must_make_sense_for_its_task(task: str, answer: Any, fine: bool) -> None:
    assert (wrong_with(task, answer, None) is None) is fine


def test_a_golden_answer_is_asked_for_greedily_and_must_come() -> None:
    golden = {"input": "A", "parameters": {"max_new_tokens": 2}, "output": "A b"}
    body = request_body("text-generation", golden)
    assert body == {"input": "A", "parameters": {"do_sample": False, "max_new_tokens": 2}}
    assert wrong_with("text-generation", [{"generated_text": "A b"}], golden) is None
    assert "golden answer 'A b'" in str(wrong_with("text-generation", [{"generated_text": "A c"}], golden))


def test_a_task_of_ones_own_has_its_golden_answer_checked_too() -> None:
    golden = {"input": "a-b", "output": {"words": 2}}
    assert wrong_with("word-count", {"words": 2}, golden) is None
    assert "golden answer {'words': 2}, found {'words': 1}" in str(wrong_with("word-count", {"words": 1}, golden))


def test_a_golden_request_without_an_output_asks_for_any_answer() -> None:
    golden = {"input": "A"}
    assert wrong_with("text-generation", [{"generated_text": "A c"}], golden) is None
    assert wrong_with("embeddings", {"embedding": []}, golden) is not None


# ---- why a start failed


LOG = """\
W-9500-m_v1-stdout\tloading
W-9501-other_v1-stdout\tTraceback (most recent call last):
W-9501-other_v1-stdout\tValueError: not ours
W-9500-m_v1-stdout\tTraceback (most recent call last):
W-9500-m_v1-stdout\t  File "x.py", line 1
W-9500-m_v1-stdout\tweightless.errors.InvalidRelease: config.json is missing
W-9500-m_v1-stdout\t
W-9500-m_v1-stdout\tTraceback (most recent call last):
W-9500-m_v1-stdout\t  File "model_service_worker.py", line 2
W-9500-m_v1-stdout\tRuntimeError: 500 - Unknown exception
"""


def test_the_reason_of_a_failed_start_is_the_exception_that_its_worker_printed(tmp_path: Path) -> None:
    assert log_position(tmp_path) == 0
    assert failure_reason(tmp_path, "m", "v1", 0) is None
    log = tmp_path / "worker.log"
    log.write_text("W-9500-m_v1-stdout\tTraceback (most\nW-9500-m_v1-stdout\tKeyError: of an earlier start\n")
    position = log_position(tmp_path)
    assert failure_reason(tmp_path, "m", "v1", position) is None
    with log.open("a") as more:
        more.write(LOG)
    assert failure_reason(tmp_path, "m", "v1", position) == "weightless.errors.InvalidRelease: config.json is missing"
    assert failure_reason(tmp_path, "m", "v1.2", position) is None
    log.write_text(LOG)  # rolled over: it is shorter than it was
    assert failure_reason(tmp_path, "m", "v1", position + 10_000) is not None


def test_a_ledger_that_is_being_written_is_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    (tmp_path / "7.json").write_text('{"phases": {"fetch": 1.5}}')
    assert read_ledger(tmp_path) == {"phases": {"fetch": 1.5}}
    assert read_ledger(tmp_path, pid=8) is None
    (tmp_path / "7.json").write_text('{"pha')
    assert read_ledger(tmp_path) is None


# ---- the device


OLD = {"usable": False, "cuda": "13.0", "error": "The NVIDIA driver on your system is too old (found version 12020)"}


@pytest.mark.parametrize(
    ("gpus", "driver", "torch", "says"),
    [
        ((), None, None, "found none: no NVIDIA driver"),
        ((), "580.1", None, "found none: the NVIDIA driver 580.1 sees no GPU"),
        (("H100",), "535.5", OLD, "found H100, but the NVIDIA driver 535.5 is too old for CUDA 13.0"),
        (("H100",), "580.1", {"usable": False, "cuda": None, "error": "x"}, "without CUDA"),
        (("H100",), "580.1", {"usable": False, "cuda": "13.0", "error": "busy"}, "busy"),
    ],
)
def test_a_required_gpu_that_cannot_be_used_says_why(
    gpus: tuple[str, ...], driver: str | None, torch: dict[str, Any] | None, says: str
) -> None:
    device = verdict(gpus, driver, torch)
    assert device.kind == "cpu"
    with pytest.raises(NoUsableGpu, match="REQUIRE_GPU=1") as caught:
        check_required(device)
    assert says in str(caught.value)


def test_a_gpu_that_can_be_used() -> None:
    device = verdict(("H100",), "580.1", {"usable": True, "cuda": "13.0", "error": ""})
    check_required(device)
    assert device.as_dict() == {"kind": "cuda", "gpus": ["H100"], "driver": "580.1", "reason": None}


# ---- cold starts, memory


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "model"),
        ({}, "model"),
        ({"model": "m", "variant": "zip"}, "variant"),
        ({"model": "m", "cache": ["cold"]}, "cache"),
        ({"model": "m", "release": 3}, "release"),
        ({"model": "m", "prompt": {}}, "prompt"),
    ],
)
def test_a_wrong_order_of_a_cold_start_is_400(body: Any, field: str) -> None:
    with pytest.raises(ApiError) as caught:
        Order.of(body)
    assert (caught.value.code, caught.value.field) == (400, field)


def test_an_order_has_defaults() -> None:
    assert Order.of({"model": "m", "release": None}) == Order(
        "m", None, "slim", "cold", "zygote", "warm", None, "Hello"
    )


def test_a_memory_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    assert memory.recall("m") is None
    (tmp_path / "m.json").write_text("{")
    assert memory.recall("m") is None
    memory.forget("m")
    assert memory.models() == []
