"""Language models trained further: on examples, on preferences, and by rewards. This index needs no torch."""

from odonata.card import Card

METHODS = {
    "sft": Card(
        "Supervised fine-tuning: conversations, or prompts with their completions.",
        "Ouyang et al. 2022, arXiv:2203.02155, step 1",
        "odonata.posttrain.recipes:sft",
        claims=("distillation-beats-rl",),
    ),
    "reward": Card(
        "A reward model from preferences, by Bradley and Terry.",
        "Christiano et al. 2017, arXiv:1706.03741; Ouyang et al. 2022, arXiv:2203.02155, eq. 1",
        "odonata.posttrain.recipes:reward",
        claims=("reward-hacking", "preference-compute", "test-time-scaling"),
    ),
    "prm": Card(
        "A process reward model: whether each step is right.",
        "Lightman et al. 2023, arXiv:2305.20050",
        "odonata.posttrain.recipes:prm",
        claims=("test-time-scaling", "mcts-perfect-player"),
    ),
    "dpo": Card(
        "Direct preference optimisation: the policy is its own reward model; conservative, robust and hinge forms.",
        "Rafailov et al. 2023, arXiv:2305.18290",
        "odonata.posttrain.recipes:dpo",
        claims=("preference-compute", "preference-losses"),
    ),
    "ipo": Card(
        "Preferences by a squared loss that does not run away where they are certain.",
        "Azar et al. 2023, arXiv:2310.12036",
        "odonata.posttrain.recipes:ipo",
        claims=("preference-losses",),
    ),
    "kto": Card(
        "Single answers called good or bad, by prospect theory.",
        "Ethayarajh et al. 2024, arXiv:2402.01306",
        "odonata.posttrain.recipes:kto",
        claims=("preference-losses",),
    ),
    "simpo": Card(
        "Preferences by mean log-probability and a margin, without a reference.",
        "Meng et al. 2024, arXiv:2405.14734",
        "odonata.posttrain.recipes:simpo",
        claims=("preference-losses",),
    ),
    "ppo": Card(
        "Rewards by PPO: a value head, clipped steps, a price on leaving the reference.",
        "Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155",
        "odonata.posttrain.recipes:ppo",
        claims=("reward-hacking",),
    ),
    "grpo": Card(
        "Rewards compared within a group of answers to one prompt; no value network.",
        "Shao et al. 2024, arXiv:2402.03300 (DeepSeekMath)",
        "odonata.posttrain.recipes:grpo",
        claims=("r1-zero", "kl-gradients", "loss-normalisation", "distillation-beats-rl"),
    ),
    "dr-grpo": Card(
        "GRPO without its two biases: no division by deviations, nor by lengths.",
        "Liu et al. 2025, arXiv:2503.20783",
        "odonata.posttrain.recipes:dr_grpo",
        claims=("r1-zero", "kl-gradients", "loss-normalisation"),
    ),
    "dapo": Card(
        "GRPO with a higher upper clip, token means, live groups only, and a price on overlong answers.",
        "Yu et al. 2025, arXiv:2503.14476",
        "odonata.posttrain.recipes:dapo",
        claims=("r1-zero", "kl-gradients", "loss-normalisation"),
    ),
    "rloo": Card(
        "REINFORCE with the mean of a prompt's other answers as baseline.",
        "Ahmadian et al. 2024, arXiv:2402.14740",
        "odonata.posttrain.recipes:rloo",
        claims=("r1-zero", "kl-gradients", "loss-normalisation"),
    ),
    "r1": Card(
        "R1's line: cold start, rewards, rejection sampling, fine-tuning, rewards again, distillation.",
        "DeepSeek-AI 2025, arXiv:2501.12948",
        "odonata.posttrain.recipes:r1",
        claims=("distillation-beats-rl",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.posttrain.build:build"
"""`build(recipe, assets) -> Task`."""

RUNNERS = {"r1": "odonata.posttrain.r1:run"}
"""Method → `run(recipe, folder, world, resume) -> lines`, of those that are made of other methods' runs."""

RECOGNISES = "odonata.posttrain.model:recognises"
"""`recognises(path)`: whether weights are those of a reward model."""

LOAD = "odonata.posttrain.model:load"
"""`load(path, method, device)`: a `LanguageModel`; a `Judge` for reward models."""

EXHIBITS = "odonata.language.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""

PANELS = "odonata.posttrain.panels:panels"
"""`panels(recipe, run) -> [(title, HTML)]`: sections of the report page."""

DOCTOR = "odonata.posttrain.doctor:examine"
"""`examine(run) -> findings`: what is wrong with a run of this room."""

EXPLAIN = "odonata.posttrain.explain:explained"
"""`explained(recipe) -> Explanation`: equations, and defaults beside the paper's and TRL's."""

PRESETS = "odonata.posttrain.presets:named"
"""`named(method) -> {preset: fields}`: what `--preset` takes."""
