"""Decisions: value tables of finite worlds, and policies for control. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "gridworld": Card(
        "Values and policies as tables: dynamic programming, Monte Carlo, temporal differences (--solver).",
        "Zhao 2025, Mathematical Foundations of Reinforcement Learning, chapters 2 to 7; Sutton and Barto 2018",
        "odonata.decide.recipes:gridworld",
        claims=("robbins-monro", "monte-carlo-dp"),
    ),
    "ppo-control": Card(
        "A policy for CartPole, Acrobot, MountainCar and Gymnasium's own, by clipped steps on its own rollouts (PPO).",
        "Schulman et al. 2017, arXiv:1707.06347; Huang et al. 2022, The 37 Implementation Details of PPO",
        "odonata.decide.recipes:ppo_control",
        claims=("ppo-clip",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.decide.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.decide.predictor:load"
"""`load(path, method, device) -> predictor`, for run folders of this room's methods and what they were converted to."""

RECOGNISES = "odonata.decide.predictor:recognises"
"""`recognises(path) -> bool`: whether a file or folder holds tables of this room."""

EXHIBITS = "odonata.decide.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
