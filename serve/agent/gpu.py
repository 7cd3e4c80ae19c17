"""What this node computes on, found out without importing torch into the agent.

NVML (the driver's library) says whether there is a GPU at all; torch, asked in a process of its own, whether it can use it. The
two differ when the driver is older than the CUDA that torch was built for: 580 for the CUDA 13 of torch 2.13.
"""

import asyncio
import json
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from serve.agent.settings import child_environment, python
from weightless.errors import WeightlessError

_TIMEOUT_S = 120.0


class NoUsableGpu(WeightlessError):
    """REQUIRE_GPU is set, and models would run on the CPU."""


@dataclass(frozen=True)
class Device:
    """`reason` says why the GPUs that are there, if any, are not used."""

    kind: str  # cuda or cpu
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "gpus": list(self.gpus), "driver": self.driver, "reason": self.reason}


async def find_device() -> Device:
    """Look. Costs nothing where there is no NVIDIA driver, an import of torch (3 s) elsewhere, beside the agent."""
    gpus, driver = nvml()
    if driver is None or not gpus:
        return verdict(gpus, driver, None)
    process = await asyncio.create_subprocess_exec(
        python(),
        "-m",
        "serve.agent.gpu",
        stdout=asyncio.subprocess.PIPE,
        env=child_environment({"PYTHONPATH": ":".join(sys.path)}),
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
        said = json.loads(output or b'{"error": "torch could not be asked"}')
    except (TimeoutError, ValueError):
        said = {"error": f"torch did not say within {_TIMEOUT_S:.0f} s whether it can use the GPU"}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return verdict(gpus, driver, said)


def verdict(gpus: tuple[str, ...], driver: str | None, torch_said: dict[str, Any] | None) -> Device:
    """From NVML's and torch's answers to what models will run on."""
    if driver is None:
        return Device("cpu", reason="no NVIDIA driver was found")
    if not gpus:
        return Device("cpu", driver=driver, reason=f"the NVIDIA driver {driver} sees no GPU")
    if torch_said is not None and torch_said.get("usable"):
        return Device("cuda", gpus, driver)
    cuda, error = (torch_said or {}).get("cuda"), str((torch_said or {}).get("error"))
    if cuda is None:
        return Device("cpu", gpus, driver, f"this torch is built without CUDA ({error})")
    if "driver" in error.lower() and "old" in error.lower():
        return Device(
            "cpu", gpus, driver, f"the NVIDIA driver {driver} is too old for CUDA {cuda}, which torch is built for"
        )
    return Device("cpu", gpus, driver, f"torch cannot use it: {error}")


def check_required(device: Device) -> None:
    """Raise unless models run on a GPU; for REQUIRE_GPU=1."""
    if device.kind != "cuda":
        found = (
            f"found {', '.join(device.gpus)}, but {device.reason}" if device.gpus else f"found none: {device.reason}"
        )
        raise NoUsableGpu(
            f"REQUIRE_GPU=1: required a usable NVIDIA GPU, {found}; update the driver (580 or newer for CUDA 13), run the "
            "container with TORCHSERVE_RUNTIME=nvidia, or unset REQUIRE_GPU"
        )


def nvml() -> tuple[tuple[str, ...], str | None]:
    """Names of the GPUs and the driver's version; no driver: nothing and None."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles), str(
            pynvml.nvmlSystemGetDriverVersion()
        )
    except pynvml.NVMLError:
        return (), str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _ask_torch() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
        error = "; ".join(str(warning.message) for warning in caught)
    if not usable and not error:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as refused:
            error = str(refused)
    return {"usable": usable, "cuda": torch.version.cuda, "error": error}


if __name__ == "__main__":
    print(json.dumps(_ask_torch()))
