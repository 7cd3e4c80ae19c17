"""Where a model runs and in which dtype, decided once, with the reason for the status page."""

from typing import NamedTuple

import torch

from tasks.shared.contract import Node
from tasks.shared.packed import can_pack


class Placement(NamedTuple):
    """`device_map`: what transformers' from_pretrained takes, None on a plain CPU. `dtype` "auto": the checkpoint's own.

    `pack`: the linear layers are to be packed for the CPU.
    """

    device: torch.device
    dtype: torch.dtype | str
    device_map: str | dict[str, str] | None
    reason: str
    pack: bool = False


def worker_device(gpu_id: int | None, cuda: bool) -> tuple[str, str]:
    """The device's name for a worker to which TorchServe gave this GPU (None: none), and why."""
    if gpu_id is None:
        return "cpu", "TorchServe gave this worker no GPU"
    if not cuda:
        return (
            "cpu",
            f"TorchServe gave this worker GPU {gpu_id}, but torch cannot use CUDA (driver too old, or a CPU build)",
        )
    return f"cuda:{gpu_id}", f"TorchServe gave this worker GPU {gpu_id}"


def place(node: Node, on_gpu: str = "bfloat16") -> Placement:
    """Device and dtype for a model of this node.

    A dtype in the node's settings always wins. Else `on_gpu` on a GPU, and on a CPU the checkpoint's own, which is mapped and
    shared by all workers; the profile `throughput` takes float32 there, packed: a private copy, but batches are many times faster
    on a CPU without bfloat16 instructions.
    """
    device = torch.device(node.device)
    if node.dtype != "auto":
        dtype, why = node.dtype, "set for this node"
    elif device.type == "cuda":
        dtype, why = on_gpu, "the default on a GPU"
        if on_gpu == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            dtype, why = "float16", "this GPU has no bfloat16"
    elif node.profile == "throughput":
        dtype, why = "float32", "profile throughput on a CPU, a private copy that is packed for it"
    else:
        dtype, why = "auto", "the checkpoint's own, so that its file is mapped and shared"
    if node.device_map is not None:
        device_map: str | dict[str, str] | None = node.device_map
    else:
        device_map = {"": node.device} if device.type != "cpu" else None
    pack = node.profile == "throughput" and device_map is None and can_pack()
    return Placement(device, dtype if dtype == "auto" else getattr(torch, dtype), device_map, f"{dtype}: {why}", pack)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory for this call only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


def device_lost(error: BaseException) -> bool:
    """Whether the error leaves the accelerator unusable for the rest of the process (a failed assertion on it, say)."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def free_cache() -> None:
    """Hand back what torch keeps for later, after an allocation failed."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
