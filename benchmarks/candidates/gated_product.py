"""Gate and up projection as one product that also applies SwiGLU, without reading its own result again.

Legend: R rows, H hidden, F MLP width.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCKS: dict[str, Any] = {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
"""Block sizes; COLUMNS of each half."""


@triton.jit
def _gated_product(
    x, inner, packed, between, rows, H: tl.constexpr, F: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    for block in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS) * across, tl.num_programs(0)):
        row, column = block // across * ROWS, block % across * COLUMNS
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, H, DEPTH):
            left = x.load([row, start])
            gate = tl.dot(left, inner.load([column, start]).T, gate)
            up = tl.dot(left, inner.load([F + column, start]).T, up)
        half_gate, half_up = gate.to(packed.dtype), up.to(packed.dtype)
        packed.store([row, column], half_gate)
        packed.store([row, F + column], half_up)
        # from what is stored, as the gradient is computed, and rounded where the plain model rounds
        gate, up = half_gate.to(tl.float32), half_up.to(tl.float32)
        silu = (gate * tl.sigmoid(gate)).to(packed.dtype).to(tl.float32)
        between.store([row, column], (silu * up).to(packed.dtype))


def gated_product(x: Tensor, inner: Tensor, programs: int) -> tuple[Tensor, Tensor]:
    """SwiGLU of two projections.

    Args:
        x: (R, H).
        inner: (2F, H): gate and up projection, concatenated; F a multiple of COLUMNS.
        programs: how many run at once.

    Returns:
        The products, (R, 2F), which the backward pass needs, and silu(gate) * up, (R, F).
    """
    (rows, hidden), width = x.shape, len(inner) // 2
    assert width % BLOCKS["COLUMNS"] == 0, "the last block of gates would overwrite the first of up"
    packed, between = x.new_empty(rows, 2 * width), x.new_empty(rows, width)
    deep, wide = [BLOCKS["ROWS"], BLOCKS["DEPTH"]], [BLOCKS["ROWS"], BLOCKS["COLUMNS"]]
    _gated_product[(programs,)](
        TensorDescriptor.from_tensor(x, deep),
        TensorDescriptor.from_tensor(inner, [BLOCKS["COLUMNS"], BLOCKS["DEPTH"]]),
        TensorDescriptor.from_tensor(packed, wide),
        TensorDescriptor.from_tensor(between, wide),
        rows, hidden, width, **BLOCKS,
    )  # fmt: skip
    return packed, between
