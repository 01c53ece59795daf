"""The equations of this room's methods as plain text, each with where it is printed and the options that are in it.

`odonata explain NAME` prints them, and its tests see that the options exist. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Equation(NamedTuple):
    """One block of lines."""

    name: str
    text: str
    source: str
    options: tuple[str, ...] = ()
    """Fields of the recipe that appear in it, those with a dot outside the method's own."""


SYMBOLS = "x prompt, y answer, y_t its tokens, π policy, π_old as it sampled, π_ref reference, r reward, σ logistic"
"""What letters mean in all of them."""

_GROUP = Equation(
    "advantage of an answer",
    "A_i = (r_i − mean(r_1 … r_G)) / (std(r_1 … r_G) + 1e-4)   G answers to one prompt; std over G − 1\n"
    "--scale none:  A_i = r_i − mean(r_1 … r_G)   groups of equal rewards have A = 0",
    "Shao et al. 2024, arXiv:2402.03300, section 4.1.2; --scale none: Liu et al. 2025, arXiv:2503.20783, section 3.2",
    ("group", "scale", "reward", "reward_weights"),
)
_CLIP = Equation(
    "loss of a token",
    "ρ_t = π(y_t | x, y_<t) / π_old(y_t | x, y_<t)   both at --temperature\n"
    "ℓ_t = −min(ρ_t A, clip(ρ_t, 1 − clip_low, 1 + clip_high) A)\n"
    "--kind cispo:  ℓ_t = −stop(clip(ρ_t, …)) A ln π(y_t | x, y_<t)",
    "Schulman et al. 2017, arXiv:1707.06347, equation 7; cispo: MiniMax 2025, arXiv:2506.13585, equations 4 and 5",
    ("kind", "clip_low", "clip_high", "temperature", "epochs", "minibatches"),
)
_K3 = Equation(
    "divergence in the loss",
    "ℓ_t += β (π_ref/π − 1 − ln(π_ref/π))   k3, at the sampled token; no reference where β = 0",
    "Shao et al. 2024, arXiv:2402.03300, equation 4; times ρ by --kl-corrected: DeepSeek-V3.2, arXiv:2512.02556",
    ("beta", "kl", "kl_place", "kl_corrected"),
)
_PAIR = Equation(
    "implicit reward",
    "r̂(x, y) = β ln(π(y | x) / π_ref(y | x))   summed over the answer's tokens with its end token",
    "Rafailov et al. 2023, arXiv:2305.18290, equation 5",
    ("beta", "precompute_reference"),
)


def _mean(how: str, text: str, source: str) -> Equation:
    return Equation("mean over tokens", f"{text}   (--aggregation {how})", source, ("aggregation",))


EQUATIONS: Mapping[str, tuple[Equation, ...]] = {
    "sft": (
        Equation(
            "loss",
            "L = −Σ_t ln π(y_t | x, y_<t) / N   N: tokens of all answers of the batch",
            "Ouyang et al. 2022, arXiv:2203.02155, step 1",
            ("learn",),
        ),
    ),
    "reward": (
        Equation(
            "loss of a pair",
            "ℓ = −ln σ(r(x, y_chosen) − r(x, y_rejected) − margin) + centering (r_chosen + r_rejected)²",
            "Ouyang et al. 2022, arXiv:2203.02155, equation 1; margin: Touvron et al. 2023, arXiv:2307.09288, equation "
            "2; centering: Eisenstein et al. 2023, arXiv:2312.09244",
            ("margin", "centering"),
        ),
    ),
    "prm": (
        Equation(
            "loss of a step",
            "ℓ_s = −[c_s ln p_s + (1 − c_s) ln(1 − p_s)]   p_s: the head at the step's last token",
            "Lightman et al. 2023, arXiv:2305.20050, section 2.6",
            ("labels", "separator", "neutral"),
        ),
        Equation(
            "score of a solution",
            "Π_s p_s   or   min_s p_s   long solutions lose by the product",
            "Lightman et al. 2023, arXiv:2305.20050, section 2.6 and appendix F",
        ),
    ),
    "dpo": (
        _PAIR,
        Equation(
            "loss of a pair",
            "ℓ = −ln σ(Δ),   Δ = r̂(x, y_chosen) − r̂(x, y_rejected)   ln 2 before the first update\n"
            "conservative:  (1 − ε) (−ln σ(Δ)) + ε (−ln σ(−Δ))   ε: --label-smoothing\n"
            "robust:   [(1 − ε) (−ln σ(Δ)) − ε (−ln σ(−Δ))] / (1 − 2ε)\n"
            "hinge:   max(0, 1 − Δ)",
            "Rafailov et al. 2023, arXiv:2305.18290, equation 7; Mitchell 2023 (conservative); Chowdhury et al. 2024, "
            "arXiv:2403.00409, section 3.1 (robust); Zhao et al. 2023, arXiv:2305.10425 (hinge)",
            ("loss", "label_smoothing"),
        ),
    ),
    "ipo": (
        Equation(
            "loss of a pair",
            "ℓ = (h − 1/(2β))²,   h = ln(π/π_ref)(y_chosen) − ln(π/π_ref)(y_rejected)   β is the paper's τ\n"
            "--normalised: both logarithms are means over tokens",
            "Azar et al. 2023, arXiv:2310.12036, equation 17",
            ("beta", "normalised", "precompute_reference"),
        ),
    ),
    "kto": (
        Equation(
            "reference point",
            "z0 = max(0, mean over the batch of ln π(y' | x) / π_ref(y' | x))   y' answers another prompt; no gradient",
            "Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1",
        ),
        Equation(
            "loss of an answer",
            "ℓ = λ_D (1 − σ(β (ln(π/π_ref)(y) − z0)))   where y is good\n"
            "ℓ = λ_U (1 − σ(β (z0 − ln(π/π_ref)(y))))   where it is bad\n"
            "λ_D n_D / (λ_U n_U) = --balance   the rarer kind's λ is raised",
            "Ethayarajh et al. 2024, arXiv:2402.01306, sections 4.1 and 4.2",
            ("beta", "balance"),
        ),
    ),
    "simpo": (
        Equation(
            "loss of a pair",
            "ℓ = −ln σ(β (ln π(y_chosen | x) / |y_chosen| − ln π(y_rejected | x) / |y_rejected|) − γ)",
            "Meng et al. 2024, arXiv:2405.14734, equation 6",
            ("beta", "gamma"),
        ),
    ),
    "ppo": (
        Equation(
            "reward of a token",
            "r_t = −β (ln π_old(y_t) − ln π_ref(y_t)) + [y_t is the last] score(x, y)",
            "Ziegler et al. 2019, arXiv:1909.08593, equation 2",
            ("beta", "kl", "kl_target", "score_at", "missing_eos_penalty", "whiten_rewards"),
        ),
        Equation(
            "advantages and returns",
            "δ_t = r_t + γ V(t + 1) − V(t),   A_t = δ_t + γ λ A_{t+1},   R_t = A_t + V(t)   A then whitened",
            "Schulman et al. 2015, arXiv:1506.02438, equation 16",
            ("gamma", "lam", "whiten_advantages"),
        ),
        Equation(
            "loss of a token",
            "ℓ_t = −min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t) + c max((V − R_t)², (clip(V, V_old ± ε_V) − R_t)²) / 2",
            "Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9; the clip of values: OpenAI's baselines",
            ("clip", "value_clip", "value_coef", "epochs", "minibatches", "temperature"),
        ),
    ),
    "grpo": (
        _GROUP,
        _CLIP,
        _K3,
        _mean(
            "sequence", "L = (1/G) Σ_i (1/|y_i|) Σ_t ℓ_{i,t}   long answers weigh less a token",
            "Shao et al. 2024, arXiv:2402.03300, equation 3",
        ),
    ),
    "dr-grpo": (
        _GROUP,
        _CLIP,
        _mean(
            "constant", "L = (1/G) Σ_i (1/--max-new-tokens) Σ_t ℓ_{i,t}",
            "Liu et al. 2025, arXiv:2503.20783, section 3.2 and listing 1",
        ),
    ),
    "dapo": (
        _GROUP,
        _CLIP,
        _mean(
            "token", "L = Σ_i Σ_t ℓ_{i,t} / Σ_i |y_i|",
            "Yu et al. 2025, arXiv:2503.14476, equations 8 and 12",
        ),
        Equation(
            "dynamic sampling",
            "0 < number of right answers in a group < G   up to --resample more rounds of prompts",
            "Yu et al. 2025, arXiv:2503.14476, equation 11",
            ("resample",),
        ),
        Equation(
            "overlong answers",
            "r += min(0, max(−1, (L_max − buffer − |y|) / buffer))   cut answers are not learned from",
            "Yu et al. 2025, arXiv:2503.14476, section 3.4 and equation 13",
            ("overlong_buffer", "filter_truncated", "max_new_tokens"),
        ),
    ),
    "rloo": (
        Equation(
            "reward with divergence",
            "r_i = r(x, y_i) − β Σ_t (ln π_old(y_{i,t}) − ln π_ref(y_{i,t}))   k1, no gradient",
            "Ahmadian et al. 2024, arXiv:2402.14740, section 2; Ziegler et al. 2019, arXiv:1909.08593, equation 2",
            ("beta", "kl", "kl_place"),
        ),
        Equation(
            "advantage of an answer",
            "A_i = r_i − (1/(G − 1)) Σ_{j≠i} r_j",
            "Ahmadian et al. 2024, arXiv:2402.14740, section 2.2",
            ("group", "baseline", "scale"),
        ),
        Equation(
            "loss",
            "L = −(1/G) Σ_i (π(y_i | x) / π_old(y_i | x)) A_i   the ratio of whole answers, without a clip",
            "Ahmadian et al. 2024, arXiv:2402.14740, section 2.2, with TRL 1.16's ratio",
            ("kind", "aggregation", "clip_low", "clip_high"),
        ),
    ),
    "r1": (
        Equation(
            "stages",
            "base → sft on a few long answers → grpo → its right answers → sft of the base → grpo → sft of a student\n"
            "equations: `odonata explain sft`, `odonata explain grpo`",
            "DeepSeek-AI 2025, arXiv:2501.12948, sections 2.3 and 2.4",
            ("cold_steps", "rl_steps", "sft_steps", "final_steps", "distil_steps"),
        ),
    ),
}  # fmt: skip
"""Method → its equations."""
