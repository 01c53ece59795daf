"""Patch projections for other sizes of patch."""

import torch
import torch.nn.functional as F

from odonata.nn.patch_kernels import resample_patch_kernel


def test_enlarged_patches_keep_their_embeddings():
    """Beyer et al. 2022, sec. 3.4: exact where patches grow; resizing the kernel instead is not."""
    kernel, patches = torch.randn(5, 3, 4, 4), torch.randn(7, 3, 4, 4)
    want = F.conv2d(patches, kernel)
    for size in (5, 8, 16):
        large = F.interpolate(patches, (size, size), mode="bilinear")
        found = F.conv2d(large, resample_patch_kernel(kernel, (size, size)))
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        naive = F.interpolate(kernel, (size, size), mode="bilinear")
        assert (F.conv2d(large, naive) - want).norm() > 0.3 * want.norm()


def test_its_own_size_is_the_very_same_kernel_and_gradients_flow():
    kernel = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert resample_patch_kernel(kernel, (4, 4)) is kernel
    resample_patch_kernel(kernel, (6, 3)).square().sum().backward()
    assert kernel.grad is not None and kernel.grad.abs().sum() > 0
