"""Newton-Schulz whose symmetric products compute one triangle of their result and mirror it.

Of an iteration's three products two have a symmetric result: that of a matrix with its transpose, and its square.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smollm.training.optim import _COEFFICIENTS

BLOCKS: dict[str, Any] = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 4}
"""Block sizes; ROWS is a multiple of COLUMNS."""


@triton.jit
def _symmetric_product(
    x, added, out, size, depth, x_matrix, x_row, x_column, alpha, beta,
    ADDS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    index, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # row r has ratio * (r + 1) blocks on and below the diagonal
    ratio: tl.constexpr = ROWS // COLUMNS
    line = ((tl.sqrt_rn(index.to(tl.float32) * (8 / ratio) + 1) - 1) / 2).to(tl.int32)
    first, other = line * ROWS, (index - ratio * line * (line + 1) // 2) * COLUMNS
    if other >= size:
        return
    rows, columns = first + tl.arange(0, ROWS), other + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    x += matrix * x_matrix
    # rows past the last one read others, and are not stored
    left = x + (rows % size)[:, None] * x_row + inner[None, :] * x_column
    right = x + (columns % size)[:, None] * x_row + inner[None, :] * x_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        if EVEN:
            one, two = tl.load(left), tl.load(right)
        else:
            inside = (start + inner < depth)[None, :]
            one, two = tl.load(left, mask=inside, other=0.0), tl.load(right, mask=inside, other=0.0)
        total = tl.dot(one, tl.trans(two), total)
        left += DEPTH * x_column
        right += DEPTH * x_column
    total *= alpha
    rows, columns = rows[:, None], columns[None, :]
    lower = (rows < size) & (columns <= rows)
    here = matrix * size * size + rows * size + columns
    if ADDS:
        total += beta * tl.load(added + here, mask=lower, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    tl.store(out + here, result, mask=lower)
    there = matrix * size * size + tl.trans(columns) * size + tl.trans(rows)
    tl.store(out + there, tl.trans(result), mask=tl.trans((rows < size) & (columns < rows)))


def symmetric_product(x: Tensor, added: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """`alpha` times the product of each matrix with its transpose, plus `beta` times `added`.

    Args:
        x: (n, M, K), with any strides.
        added: (n, M, M), contiguous and symmetric.

    Returns:
        (n, M, M), symmetric to the last bit.
    """
    count, size, depth = x.shape
    out = torch.empty(count, size, size, dtype=x.dtype, device=x.device)
    lines, ratio = triton.cdiv(size, BLOCKS["ROWS"]), BLOCKS["ROWS"] // BLOCKS["COLUMNS"]
    _symmetric_product[(ratio * lines * (lines + 1) // 2, count)](
        x, added, out, size, depth, *x.stride(), alpha, beta, added is not None, depth % BLOCKS["DEPTH"] == 0, **BLOCKS
    )
    return out


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """As `smollm.training.optim.orthogonalize`."""
    a, b, c = _COEFFICIENTS
    is_wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(dtype, memory_format=torch.contiguous_format).view(-1, *x.shape[-2:])
    for _ in range(steps):
        gram = symmetric_product(x if is_wide else x.mT)
        polynomial = symmetric_product(gram, gram, alpha=c, beta=b)
        x = torch.baddbmm(x, polynomial, x, beta=a) if is_wide else torch.baddbmm(x, x, polynomial, beta=a)
    return x.view(matrices.shape)
