"""Muon's orthogonalization: singular values, sizes, stacks."""

import pytest
import torch

from smollm.training.optim import orthogonalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(64, 24), (24, 64), (48, 48), (3, 64, 24), (2, 3, 24, 64)], ids=lambda shape: "x".join(map(str, shape))
)
def test_orthogonalizing_brings_singular_values_near_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spread = torch.logspace(0, -1.5, u.shape[-1])  # the largest 30 times the smallest
    matrices = 1000 * (u * spread) @ v
    result = orthogonalize(matrices, 5, dtype)
    assert result.shape == matrices.shape
    assert result.dtype == dtype
    # in the basis of the old singular vectors what is left is the new values, on the diagonal
    values = u.mT @ result.float() @ v.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25
    assert (values - torch.diag_embed(diagonal)).abs().max() < (1e-4 if dtype is torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("size", [3e-7, 1.0, 3e4])
def test_the_size_of_an_update_does_not_matter_in_half_precision(size: float, dtype: torch.dtype) -> None:
    matrix = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(matrix.double(), 5, torch.float64).flatten()
    half = orthogonalize(size * matrix, 5, dtype).double().flatten()
    assert float(exact @ half / exact.norm() / half.norm()) > 0.999


def test_each_matrix_of_a_stack_is_orthogonalized_by_itself() -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, 10, 16) * torch.tensor([1.0, 1000.0, 0.001])[:, None, None]
    together = orthogonalize(stack, 5, torch.float32)
    for index, matrix in enumerate(stack):
        torch.testing.assert_close(together[index], orthogonalize(matrix, 5, torch.float32), rtol=0, atol=1e-5)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 8), 5, torch.float32), torch.zeros(4, 8))
