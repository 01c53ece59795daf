"""A policy's episodes as pictures: what it saw from step to step, and what it did."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from PIL import Image, ImageDraw

from odonata.decide.control_env import make_env
from odonata.decide.control_policy import LONGEST, PolicyPredictor, load

WIDTH, BAND, BAR = 480, 40, 12
"""Pixels: of the picture, of the band that one number has, and of the bar of actions."""
EPISODES = 3
_INKS = ((23, 105, 194), (200, 80, 30), (40, 140, 80), (130, 80, 170))


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield some episodes that the likeliest actions lead through, with their returns."""
    policy = load(run, recipe.name, torch.device("cpu"))
    for episode in range(min(count, EPISODES)):
        seen, actions, total = one_episode(policy, episode)
        lines = [
            f"episode {episode + 1}: return {total:g} in {len(actions)} steps",
            f"bands from the top: the {seen.shape[1]} numbers seen, each from its least to its largest; below: actions",
        ]
        picture = io.BytesIO()
        draw_episode(seen, actions).save(picture, "PNG")
        yield f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}", lines


def one_episode(
    policy: PolicyPredictor, seed: int
) -> tuple[Float32[np.ndarray, "time dim"], Int[np.ndarray, "time"], float]:
    """Play one episode by the likeliest actions and return what was seen and done, and the return."""
    env, act = make_env(policy.assets.env, 1, (seed, 3)), policy.policy.acting()
    env.begin()
    seen, actions, total = list[Float32[np.ndarray, "dim"]](), list[int](), 0.0
    for _ in range(LONGEST):
        chosen = act(env.observations).argmax(axis=1)
        seen.append(env.observations[0].copy())
        actions.append(int(chosen[0]))
        step = env.step(chosen)
        total += float(step.rewards[0])
        if step.terminated[0] or step.truncated[0]:
            break
    return np.stack(seen), np.array(actions), total


def draw_episode(seen: Float32[np.ndarray, "time dim"], actions: Int[np.ndarray, "time"]) -> Image.Image:
    """Return a picture: a band with a curve for each number seen, and a bar with a colour for each action."""
    time, dim = seen.shape
    picture = Image.new("RGB", (WIDTH, BAND * dim + BAR), "white")
    pen = ImageDraw.Draw(picture)
    across = np.linspace(0, WIDTH - 1, time)
    for number in range(dim):
        values = seen[:, number]
        span = float(values.max() - values.min()) or 1.0
        heights = BAND * (number + 1) - 4 - (values - values.min()) / span * (BAND - 8)
        points = [(float(x), float(y)) for x, y in zip(across, heights, strict=True)]
        pen.line(points if time > 1 else points * 2, fill=_INKS[number % len(_INKS)])
        pen.line([(0, BAND * (number + 1)), (WIDTH, BAND * (number + 1))], fill=(216, 222, 230))
    edges = np.linspace(0, WIDTH, time + 1)
    for left, right, action in zip(edges[:-1], edges[1:], actions.tolist(), strict=True):
        box = (float(left), BAND * dim + 2, float(max(left, right - 1)), BAND * dim + BAR)
        pen.rectangle(box, fill=_INKS[action % len(_INKS)])
    return picture
