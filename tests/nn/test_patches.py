import pytest
import torch

from odonata.nn.patches import FlatPatchEmbed, PatchDropout, PatchEmbed, patchify


def test_flat_and_convolutional_embedding_agree():
    conv, flat, images = PatchEmbed(4, 10), FlatPatchEmbed(4, 10), torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        flat.proj.weight.copy_(conv.proj.weight.permute(0, 2, 3, 1).flatten(1))
        flat.proj.bias.copy_(conv.proj.bias)
    torch.testing.assert_close(flat(patchify(images, 4)), conv(images))


def test_patchify_refuses_part_patches():
    with pytest.raises(ValueError, match="9x8 pixels does not divide into patches of 4"):
        patchify(torch.zeros(1, 3, 9, 8), 4)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_dropout_keeps_the_stated_share_and_the_class_token(ratio):
    tokens = torch.arange(17.0).reshape(1, 17, 1).expand(64, -1, -1)
    kept, indices = PatchDropout(ratio, prefix_tokens=1).train()(tokens)
    assert kept.shape == (64, 1 + int(16 * (1 - ratio)), 1)
    assert (kept[:, 0] == 0).all()
    assert (kept[:, 1:, 0] == indices + 1).all()
    assert (indices.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in indices.tolist()}) > 30  # drawn per sample


def test_dropout_is_reproducible_and_off_in_evaluation():
    tokens, layer = torch.randn(4, 16, 2), PatchDropout(0.5).train()
    a, _ = layer(tokens, torch.Generator().manual_seed(1))
    b, _ = layer(tokens, torch.Generator().manual_seed(1))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert layer.eval()(tokens) == (tokens, None)
    with pytest.raises(ValueError, match=r"1\.0 is not in \[0, 1\)"):
        PatchDropout(1.0)
