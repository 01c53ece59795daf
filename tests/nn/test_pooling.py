import torch
import torch.nn.functional as F
from transformers import Siglip2VisionConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead

from odonata.nn.pooling import AttentionPool2d, MAPHead


def test_map_head_equals_transformers_with_padding():
    config = Siglip2VisionConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40)
    config._attn_implementation = "eager"
    peer, ours = Siglip2MultiheadAttentionPoolingHead(config), MAPHead(24, 3, 40)
    with torch.no_grad():
        ours.probe.copy_(peer.probe)
        for name, weight in zip("qkv", peer.attention.in_proj_weight.chunk(3), strict=True):
            getattr(ours.attn, name).weight.copy_(weight)
            getattr(ours.attn, name).bias.zero_()
        peer.attention.in_proj_bias.zero_()
        ours.attn.proj.load_state_dict(peer.attention.out_proj.state_dict())
        ours.norm.load_state_dict(peer.layernorm.state_dict())
        ours.mlp.load_state_dict(peer.mlp.state_dict())
    x, mask = torch.randn(3, 6, 24), torch.arange(6) < torch.tensor([[6], [2], [4]])
    torch.testing.assert_close(ours(x, mask), peer(x, mask.long()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-6)


def test_attention_pool_equals_torch_attention():
    ours = AttentionPool2d(3, 16, 2, out_dim=10)
    maps = torch.randn(4, 16, 3, 3)
    tokens = maps.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + ours.positions[:, None]
    theirs, _ = F.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        16,
        2,
        in_proj_weight=None,
        in_proj_bias=torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=ours.proj.weight,
        out_proj_bias=ours.proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=ours.q.weight,
        k_proj_weight=ours.k.weight,
        v_proj_weight=ours.v.weight,
        need_weights=False,
    )
    torch.testing.assert_close(ours(maps), theirs[0], rtol=1e-5, atol=1e-6)
