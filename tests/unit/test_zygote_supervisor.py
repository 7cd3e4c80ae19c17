"""What the agent knows of its zygote, and that it gets another when one dies."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import transformers

from serve.zygote import supervisor
from serve.zygote.imports import REQUIRED, import_all, imports_for
from serve.zygote.supervisor import LAUNCHER, Zygote
from tests.services import wait_for
from tests.zygotes import ZygoteProcess, alive, first_line

WHO = "import os; print(os.getppid())"


async def until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    await asyncio.to_thread(wait_for, condition, what, timeout)


def supervised(folder: Path, body: Callable[[Zygote, ZygoteProcess], Awaitable[None]], **options: object) -> Zygote:
    """Run the body with a started supervisor; the stand-in worker module comes with a ZygoteProcess of which only
    launch and run are used."""
    stand_in = ZygoteProcess(folder)
    stand_in.process.kill()
    stand_in.process.wait(20)
    imports = options.pop("imports", [*REQUIRED])
    zygote = Zygote(stand_in.socket, imports, **options)  # type: ignore[arg-type]

    async def all_of_it() -> None:
        try:
            await zygote.start(zygote.environment(stand_in.environment))
            await body(zygote, stand_in)
        finally:
            await zygote.stop()

    asyncio.run(all_of_it())
    return zygote


def test_it_starts_forks_comes_back_after_a_death_and_stops(tmp_path: Path) -> None:
    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        assert zygote.status.state == "starting"
        zygote.socket.unlink(missing_ok=True)  # left by the stand-in's own zygote
        await until(zygote.socket.exists, "the socket, which comes before the imports")
        assert zygote.status.state == "starting"
        early = workers.launch(WHO)  # comes before the imports are done, and waits for them
        assert await zygote.ready()
        first = zygote.status.pid
        assert (zygote.status.state, zygote.status.reason) == ("running", None)
        assert first is not None
        assert int((await asyncio.to_thread(early.communicate))[0]) == first
        await until(lambda: zygote.status.forked == 1, "the fork to be counted")

        os.kill(first, 9)
        await until(lambda: zygote.status.restarts == 1, "the death to be noticed")
        await until(lambda: zygote.status.state == "running", "the next zygote")
        assert zygote.status.pid not in (None, first)
        done = await asyncio.to_thread(workers.run, WHO)
        assert int(done.stdout) == zygote.status.pid

        done = await asyncio.to_thread(lambda: workers.run(WHO, environment={"OMP_NUM_THREADS": "7"}))
        assert int(done.stdout) == os.getpid()
        await until(lambda: zygote.status.refused == 1, "the refusal to be counted")
        assert "OMP_NUM_THREADS" in str(zygote.status.reason)
        last.append(zygote.status.pid or 0)

    last: list[int] = []
    zygote = supervised(tmp_path, body)
    assert (zygote.status.state, zygote.status.reason, zygote.status.pid) == ("off", "stopped", None)
    assert not alive(last[0])


def test_one_that_cannot_import_is_failed_says_why_and_is_tried_again(tmp_path: Path) -> None:
    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        workers.script.with_name("torch_handler").joinpath("base_handler.py").write_text(
            "raise RuntimeError('half installed')"
        )
        assert not await zygote.ready()
        assert zygote.status.state == "failed"
        assert str(zygote.status.reason).startswith(
            "cannot import ts.torch_handler.base_handler: half installed; workers start"
        )
        workers.script.with_name("torch_handler").joinpath("base_handler.py").write_text("")
        await until(lambda: zygote.status.state == "running", "a try that succeeds")

    assert supervised(tmp_path, body).status.restarts >= 1


def test_a_package_that_prints_a_long_line_ends_nothing_and_one_without_an_end_is_said(tmp_path: Path) -> None:
    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        package = workers.script.with_name("torch_handler").joinpath("base_handler.py")
        package.write_text("print('x' * (3 << 20), flush=True)")
        assert not await zygote.ready()
        assert str(zygote.status.reason).startswith("a package that it imports printed a line of more than 1 MiB")
        package.write_text("print('x' * (200 << 10), flush=True)")
        await until(lambda: zygote.status.state == "running", "a try that succeeds")

    assert supervised(tmp_path, body).status.restarts >= 1


def test_deaths_in_a_row_are_answered_more_and_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.zygote.supervisor.BACKOFF_S", (0.0, 0.0, 60.0))

    async def body(zygote: Zygote, _: ZygoteProcess) -> None:
        await until(lambda: zygote.status.restarts == 3, "three deaths")
        assert zygote.status.state == "failed"
        assert "ended with exit code 1; workers start the stock way, next try in 60 s" in str(zygote.status.reason)
        assert not await zygote.ready()

    supervised(tmp_path, body, python="/bin/false")


def test_turned_off_torchserve_gets_the_real_interpreter(tmp_path: Path) -> None:
    async def body(zygote: Zygote, _: ZygoteProcess) -> None:
        assert not await zygote.ready()
        assert zygote.status.as_dict()["state"] == "off"
        assert zygote.status.reason == "turned off by a setting"
        assert zygote.interpreter == sys.executable
        assert "WEIGHTLESS_ZYGOTE_SOCKET" not in zygote.environment({})

    supervised(tmp_path, body, enabled=False)
    assert Zygote(tmp_path / "s", []).interpreter == str(LAUNCHER)


def test_more_is_imported_for_a_model_that_comes_later(tmp_path: Path) -> None:
    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        await zygote.ready()
        seen = "import sys; print('colorsys' in sys.modules)"
        assert (await asyncio.to_thread(workers.run, seen)).stdout == b"False\n"
        await zygote.warm(["colorsys", "torch"])
        assert (await asyncio.to_thread(workers.run, seen)).stdout == b"True\n"
        os.kill(zygote.status.pid or 0, 9)
        await until(lambda: zygote.status.restarts == 1 and zygote.status.state == "running", "the next zygote")
        assert (await asyncio.to_thread(workers.run, seen)).stdout == b"True\n"

    supervised(tmp_path, body)


def test_workers_find_the_tokenizers_of_what_is_served_and_the_next_zygote_holds_them_too(
    tmp_path: Path, samples: Path
) -> None:
    seen = (
        "import sys; by_key = getattr(sys.modules.get('held_tokenizers'), 'by_key', {});"
        "print(*((key, tokenizer('The weights')['input_ids']) for key, tokenizer in sorted(by_key.items())))"
    )
    ids = transformers.AutoTokenizer.from_pretrained(samples / "falcon-tiny")("The weights")["input_ids"]

    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        async def held() -> str:
            return (await asyncio.to_thread(workers.run, seen)).stdout.decode().strip()

        await zygote.hold("early", "0", samples / "falcon-tiny")  # before there is anybody to hold it
        await zygote.ready()
        assert await held() == f"('0', {ids})"
        await zygote.hold("falcon-tiny", "1", samples / "falcon-tiny")
        await zygote.hold("another owner of the same", "1", samples / "falcon-tiny")
        await zygote.hold("broken", "2", tmp_path)
        await zygote.hold("late", "3", tmp_path / "late")
        assert await held() == f"('0', {ids}) ('1', {ids})"
        shutil.copytree(samples / "falcon-tiny", tmp_path / "late")
        await zygote.hold("late", "3", tmp_path / "late")
        assert await held() == f"('0', {ids}) ('1', {ids}) ('3', {ids})"
        await zygote.hold("late", None, tmp_path)
        await zygote.hold("early", None, tmp_path)
        await zygote.hold("falcon-tiny", None, tmp_path)
        assert await held() == f"('1', {ids})"
        os.kill(zygote.status.pid or 0, 9)
        await until(lambda: zygote.status.restarts == 1 and zygote.status.state == "running", "the next zygote")
        assert await held() == f"('1', {ids})"
        assert zygote.status.refused == 0

    supervised(tmp_path, body)


def test_a_socket_path_that_the_kernel_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="required at most 107 bytes"):
        Zygote(tmp_path / ("x" * 100), [])


def test_a_stuck_zygote_is_said_to_be_and_its_workers_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BEAT_S", 0.1)
    monkeypatch.setattr(supervisor, "STUCK_S", 1.0)

    async def body(zygote: Zygote, workers: ZygoteProcess) -> None:
        assert await zygote.ready()
        pid = zygote.status.pid
        assert pid is not None
        worker = workers.launch("import signal; print('up', flush=True); signal.pause()")
        await asyncio.to_thread(first_line, worker)
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: zygote.status.state == "failed", "the stuck zygote to be noticed")
            assert "has not answered" in str(zygote.status.reason)
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: zygote.status.state == "running", "its answer to be noticed")
        assert (zygote.status.pid, zygote.status.restarts, worker.poll()) == (pid, 0, None)

    supervised(tmp_path, body)


def test_imports_follow_task_and_architecture() -> None:
    falcon = imports_for("text-generation", ["FalconForCausalLM"])
    assert "transformers:FalconForCausalLM" in falcon
    assert "transformers:AutoModelForCausalLM" in falcon
    assert "transformers:BertModel" in imports_for("embeddings", ["BertModel"])
    assert not [entry for entry in imports_for("echo", ["FalconForCausalLM"]) if entry.startswith("transformers")]
    for task in ("text-generation", "embeddings", "echo"):
        entries = imports_for(task)
        assert set(REQUIRED) <= set(entries)
        assert not [
            entry for entry in entries if entry.split(".")[0] in ("weightless", "tasks", "handler", "minio_handler")
        ]


def test_an_entry_can_fill_a_cache_that_every_worker_would_fill() -> None:
    """Without it each worker compiles a thousand regular expressions before it loads its first weight."""
    from transformers import conversion_mapping

    assert import_all(imports_for("text-generation")) == []
    assert conversion_mapping._checkpoint_conversion_mapping_cache  # the forks' first load finds it
    assert import_all(["os.path:basename(x)", "os:no_such(x)"]) == [
        "os:no_such(x): module 'os' has no attribute 'no_such'"
    ]
