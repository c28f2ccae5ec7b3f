"""Moving slices: where pixels are read."""

from __future__ import annotations

import torch

from methods.networks.resampling import affine_grid, affine_matrices


def test_mixed_precision_moves_no_pixel() -> None:
    ones = torch.ones(1)
    theta = affine_matrices(ones, torch.tensor([0.3]), 1.1 * ones, 1.0)
    plain = affine_grid(theta, 256, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = affine_grid(theta, 256, 256)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)
    assert float((plain.to(torch.bfloat16).float() - plain).abs().max()) * 128 > 0.2  # pixels that bf16 would be off
