import pytest
import torch

from odonata.nn.lora import add_lora, lora_state_dict, merge_lora
from odonata.nn.transformer import Transformer


def trained(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()
    return model


def test_adapters_start_as_the_base_model_and_train_alone():
    model, x = Transformer(16, 2, 2), torch.randn(2, 3, 16)
    before = model(x)
    names = add_lora(model, rank=2, alpha=4)
    assert names == ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.attn.v"]
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(learned) == sorted(lora_state_dict(model)) and len(learned) == 8


def test_merging_changes_no_output_and_restores_the_names():
    model, x = Transformer(16, 2, 2), torch.randn(2, 3, 16)
    keys = set(model.state_dict())
    add_lora(model, rank=2, alpha=4, targets=("q", "fc1"))
    after = trained(model)(x)
    merge_lora(model)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-5)


def test_adapter_state_moves_to_another_copy():
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Transformer(16, 1, 2))
        add_lora(models[-1], rank=2, alpha=4)
    trained(models[0])
    models[1].load_state_dict(lora_state_dict(models[0]), strict=False)
    x = torch.randn(1, 3, 16)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=0, atol=0)


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="no Linear is named query"):
        add_lora(Transformer(16, 1, 2), rank=2, alpha=4, targets=("query",))
    with pytest.raises(ValueError, match="rank 20 does not fit a 16 to 16 Linear"):
        add_lora(Transformer(16, 1, 2), rank=20, alpha=4)
