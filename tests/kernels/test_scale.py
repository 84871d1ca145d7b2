"""scale_ in Triton: in place, and only where there is something to scale."""

import pytest
import torch
from budget import assert_within_budget

from mkd_fast.kernels.scale import scale_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (2, 1024), (5, 3, 1000), (7,)])
def test_one_scale_multiplies_every_element(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    grad = torch.randn(shape, device=device, dtype=dtype)
    scale = torch.tensor(0.37, device=device)
    exact = grad.double() * scale.double()
    plain = (grad.float() * scale).to(dtype)
    scale_(grad, scale)
    assert_within_budget(grad, exact, plain)


def test_a_scale_a_row_multiplies_its_row(device: str) -> None:
    grad = torch.randn(5, 3, 1000, device=device)
    scale = torch.tensor([1.0, 0.5, 1.0, -2.0, 0.0], device=device)
    expected = grad * scale[:, None, None]
    scale_(grad, scale)
    assert torch.equal(grad, expected)


def test_a_scale_may_be_one_number_expanded(device: str) -> None:
    grad = torch.randn(5, 1000, device=device)
    expected = grad * 0.5
    scale_(grad, torch.tensor(0.5, device=device).expand(5))
    assert torch.equal(grad, expected)


def test_no_elements_are_no_work(device: str) -> None:
    grad = torch.empty(0, 5, device=device)
    scale_(grad, torch.empty(0, device=device))
    assert grad.shape == (0, 5)
