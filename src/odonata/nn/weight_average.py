"""Averaging weights: WiSE-FT's straight line between two models (Wortsman et al. 2021)."""

from collections.abc import Mapping

from torch import Tensor


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Returns (1 - alpha) · a + alpha · b, key by key.

    Args:
        state_a: state at alpha 0, such as the zero-shot model.
        state_b: state at alpha 1, such as the fine-tuned model; same keys and shapes.
        alpha: weight of `state_b`; 0 and 1 give the ends bit by bit.

    Returns:
        New tensors of `state_a`'s types. Integer entries (counters) come from `state_b` for alpha ≥ 0.5.

    Raises:
        ValueError: keys or shapes differ.

    Source: Wortsman et al. 2021, Robust fine-tuning of zero-shot models, eq. 1.
    """
    alone = sorted(state_a.keys() ^ state_b.keys())
    if alone:
        raise ValueError(f"{len(alone)} keys stand in one state only: {', '.join(alone[:8])}")
    for key, value in state_a.items():
        if value.shape != state_b[key].shape:
            raise ValueError(
                f"{key}: shape {tuple(value.shape)} in one state, {tuple(state_b[key].shape)} in the other"
            )
    return {key: _between(value, state_b[key], alpha) for key, value in state_a.items()}


def _between(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if alpha in (0, 1) or not a.is_floating_point():
        return (a if alpha < 0.5 else b).to(a).clone()
    # Summed in float32: half precision would lose the fine-tuned difference.
    return (
        ((1 - alpha) * a.float() + alpha * b.to(a.device).float()).to(a.dtype)
        if a.itemsize < 4
        else a.lerp(b.to(a), alpha)
    )
