"""Newton-Schulz whose symmetric products compute one triangle of their result and mirror it.

All but the last product have a symmetric result: Gram matrices, and products of polynomials of one of them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smollm.training.optim import _COEFFICIENTS, _ITERATIONS_PER_GRAM

BLOCKS: dict[str, Any] = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 4}
"""Block sizes; ROWS is a multiple of COLUMNS."""


@triton.jit
def _symmetric_product(
    x, y, added, out, size, depth, x_matrix, x_row, x_column, y_matrix, y_row, y_column, alpha, beta,
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
    y += matrix * y_matrix
    # rows past the last one read others, and are not stored
    left = x + (rows % size)[:, None] * x_row + inner[None, :] * x_column
    right = y + (columns % size)[:, None] * y_row + inner[None, :] * y_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        if EVEN:
            one, two = tl.load(left), tl.load(right)
        else:
            inside = (start + inner < depth)[None, :]
            one, two = tl.load(left, mask=inside, other=0.0), tl.load(right, mask=inside, other=0.0)
        total = tl.dot(one, tl.trans(two), total)
        left += DEPTH * x_column
        right += DEPTH * y_column
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


def symmetric_product(
    x: Tensor, y: Tensor, added: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Tensor:
    """`alpha` times the product of each matrix with the transpose of the other, plus `beta` times `added`.

    Args:
        x, y: (n, M, K), with any strides; their product is symmetric.
        added: (n, M, M), contiguous and symmetric.

    Returns:
        (n, M, M), symmetric to the last bit.
    """
    count, size, depth = x.shape
    out = torch.empty(count, size, size, dtype=x.dtype, device=x.device)
    lines, ratio = triton.cdiv(size, BLOCKS["ROWS"]), BLOCKS["ROWS"] // BLOCKS["COLUMNS"]
    is_even = depth % BLOCKS["DEPTH"] == 0
    _symmetric_product[(ratio * lines * (lines + 1) // 2, count)](
        x, y, added, out, size, depth, *x.stride(), *y.stride(), alpha, beta, added is not None, is_even, **BLOCKS
    )
    return out


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """As `smollm.training.optim.orthogonalize`, but also square matrices have one Gram matrix for some iterations."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(dtype, memory_format=torch.contiguous_format).view(-1, *x.shape[-2:])
    for done in range(0, steps, _ITERATIONS_PER_GRAM):
        x = _iterate(x, min(_ITERATIONS_PER_GRAM, steps - done))
    return x.view(matrices.shape)


def _iterate(x: Tensor, times: int) -> Tensor:
    is_wide = x.shape[-2] <= x.shape[-1]
    rows = x if is_wide else x.mT
    gram = symmetric_product(rows, rows)
    product = factor = _polynomial(gram)
    for _ in range(times - 1):
        gram = symmetric_product(symmetric_product(gram, factor), factor)
        factor = _polynomial(gram)
        product = symmetric_product(product, factor)
    return product @ x if is_wide else x @ product


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    values = symmetric_product(gram, gram, gram, alpha=c, beta=b)
    values.diagonal(dim1=-2, dim2=-1).add_(a)
    return values
