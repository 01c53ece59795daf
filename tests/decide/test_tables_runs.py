"""`odonata train gridworld`: tables solved, resumed, drawn, converted, acting in Gymnasium; and what is refused."""

import dataclasses
import json
import re

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from odonata.app.api import read_run_recipe
from odonata.app.cli import main
from odonata.decide import dynamic_programming as dp
from odonata.decide.build import build
from odonata.decide.gridworld import grid_mdp
from odonata.decide.mdp import from_environment
from odonata.decide.predictor import load, recognises
from odonata.decide.recipes import gridworld
from odonata.decide.tables import StepNumbers
from odonata.decide.tables_config import USES, TableEvaluation
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.errors import DataError, RecipeError, RunError, WeightsError

WORLD = World(0, 1, torch.device("cpu"))
CPU = torch.device("cpu")
DATA = ("episodes", "episode_length", "transitions")


def recipe(steps=500, **options):
    """The recipe of options that are the method's, the data's or the run's own."""
    base = gridworld()
    own = {k: v for k, v in options.items() if hasattr(base.method, k)}
    data = {k: v for k, v in options.items() if k in DATA}
    rest = {k: v for k, v in options.items() if k not in own and k not in data}
    return dataclasses.replace(
        base, method=dataclasses.replace(base.method, **own), data=dataclasses.replace(base.data, **data), steps=steps,
        **rest,
    )  # fmt: skip


def trained(folder, steps=500, **options):
    task = build(recipe(steps, **options))
    return task, train(task.recipe, task, folder, WORLD)


@pytest.mark.shows("gridworld", "trains")
@pytest.mark.parametrize(
    ("solver", "options", "error"),
    [
        ("value", {}, 1e-4),
        ("policy", {}, 1e-9),
        ("truncated", {"sweeps": 3}, 1e-4),
        ("mc-basic", {}, 1e-3),
        ("mc-exploring-starts", {}, 0.4),
        ("mc-epsilon-greedy", {"epsilon": 0.5}, 0.4),
        ("sarsa", {"epsilon": 0.5, "alpha": 0.02}, 0.4),
        ("expected-sarsa", {"epsilon": 0.5, "alpha": 0.02}, 0.4),
        ("q-learning", {}, 1e-6),
        ("q-learning", {"behaviour": "epsilon-greedy", "epsilon": 0.5}, 1e-3),
        ("td0", {}, 0.5),
        ("n-step", {"epsilon": 0.5, "alpha": 0.02}, 0.4),
    ],
)
def test_every_solver_comes_near_the_values_that_it_should_find(tmp_path, solver, options, error):
    task, figures = trained(tmp_path / "run", solver=solver, **options)
    # What a table of zeros is away from them:
    untrained = np.sqrt((task.method.target**2).mean())
    assert figures["error_rms"] < error < untrained / 2
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert {"change", "error"} <= rows[0].keys() and rows[-1]["policy_gap"] < 0.5


@pytest.mark.parametrize("solver", USES)
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, solver):
    options = {"solver": solver, "save_every": 5, "steps": 30}
    if solver in ("sarsa", "expected-sarsa", "n-step", "mc-epsilon-greedy"):
        options |= {"epsilon": 0.9, "epsilon_final": 0.1}  # ε belongs to the step as well
    whole, _ = trained(tmp_path / "a", **options)

    class KilledError(Exception):
        pass

    class Stopping(StepNumbers):
        def start(self, step=0, rank=0, world=1):
            for number in super().start(step, rank, world):
                if int(number) == 17:
                    raise KilledError
                yield number

    killed = build(recipe(**options))
    with pytest.raises(KilledError):
        train(killed.recipe, dataclasses.replace(killed, batches=Stopping()), tmp_path / "b", WORLD)
    np.random.seed(99)  # noqa: NPY002 - whatever the process draws in between must not matter
    resumed = build(read_run_recipe(tmp_path / "b"), tmp_path / "b/assets")
    train(resumed.recipe, resumed, tmp_path / "b", WORLD, resume=True)
    for name, buffer in whole.method.named_buffers():
        assert torch.equal(buffer, dict(resumed.method.named_buffers())[name]), name


def test_states_that_no_episode_comes_to_are_not_counted_as_errors(tmp_path):
    _, figures = trained(
        tmp_path / "run",
        solver="q-learning",
        env="CliffWalking-v1",
        discount=0.9,
        alpha=1.0,
        transitions=5000,
        steps=100,
    )
    # The cells of the cliff have values in Gymnasium's model, which nobody can learn from a walk.
    assert figures["error"] < 1e-6 and figures["policy_gap"] == 0


def test_without_the_exact_solution_a_run_measures_its_own_changes_only(tmp_path):
    base = recipe(10, solver="td0")
    task = build(dataclasses.replace(base, evaluation=TableEvaluation(exact=False)))
    assert train(task.recipe, task, tmp_path / "run", WORLD) == {} and task.evaluate is None
    (row,) = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert "change" in row and "error" not in row
    with pytest.raises(RecipeError, match=r"--eval-every: without --evaluation\.exact there is nothing to measure"):
        build(dataclasses.replace(base, evaluation=TableEvaluation(exact=False), eval_every=5))


def test_another_seed_walks_another_way_and_the_same_seed_the_same():
    def values(seed):
        task = build(recipe(3, solver="sarsa", seed=seed))
        train(task.recipe, task, None, WORLD)
        return task.method.values.tolist()

    assert values(1) == values(1) != values(2)


def test_dynamic_programming_rests_and_says_after_how_many_iterations(tmp_path):
    task, _ = trained(tmp_path / "run", steps=200, solver="value")
    at_rest = dp.value_iteration(grid_mdp())
    np.testing.assert_array_equal(task.method.values.numpy(), at_rest.values)
    (line,) = [line for line in task.conclude(task.method, None) if "rest" in line]
    assert line == f"at rest after {at_rest.iterations} iterations: no value changed by 1e-06"
    short = build(recipe(5, solver="value"))
    train(short.recipe, short, None, WORLD)
    assert "not at rest: the last of 5 iterations changed a value by 0.656" in short.conclude(short.method, None)[-1]


def test_the_command_prints_values_and_arrows_and_draws_them(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "gridworld", "--solver", "policy", "--r-forbidden", "-10", "--draw", "--out", str(run)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    start = rows.index(["values"])
    table = [[float(number) for number in row] for row in rows[start + 1 : start + 6]]
    assert table[2] == [2.8, 2.5, 10.0, 5.9, 6.6]  # figure 2.7(a)
    assert printed.splitlines()[start + 6] == "policy"
    assert "○T" in printed and "→#" in printed
    picture = Image.open(run / "tables.png")
    assert picture.size == (5 * 72 + 1, 5 * 72 + 1)
    # The target is the bluest cell, and a cell of low value is nearly white.
    target, low = picture.getpixel((2 * 72 + 50, 3 * 72 + 20)), picture.getpixel((50, 4 * 72 + 20))
    assert target[0] < low[0] - 60
    page = (run / "report.html").read_text()
    assert "data:image/png;base64," in page and "values and policy of the book's 5 × 5 grid" in page.replace(
        "&#x27;", "'"
    )


def test_a_map_of_ones_own_and_its_rules(tmp_path, capsys):
    (tmp_path / "map.txt").write_text("S.#T\n....\n")
    options = [
        "--map",
        str(tmp_path / "map.txt"),
        "--target",
        "terminal",
        "--r-other",
        "-1",
        "--r-target",
        "0",
        "--discount",
        "1",
    ]
    assert main(["train", "gridworld", *options, "--steps", "30", "--out", str(tmp_path / "run")]) == 0
    values = load(tmp_path / "run", "gridworld", CPU).values
    # Through the forbidden cell it costs −1 −1 +0, around it four steps of −1 and then 0.
    np.testing.assert_allclose(values[:2], [-2, -1])
    assert "at rest" in capsys.readouterr().out


@pytest.mark.shows("gridworld", "weights")
@pytest.mark.parametrize("layout", ["text", "odonata"])
def test_tables_go_out_and_come_in_to_the_last_bit(tmp_path, layout):
    trained(tmp_path / "run", steps=20, solver="sarsa")
    first = load(tmp_path / "run", "gridworld", CPU)
    first.convert(tmp_path / "out", layout)
    assert recognises(tmp_path / "out")
    again = load(tmp_path / "out", None, CPU)
    again.convert(tmp_path / "again", layout)
    for name in ("values", "policy", "action_values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.legend == first.legend
    for file in sorted((tmp_path / "out").iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.shows("gridworld", "weights")
def test_numpy_reads_the_tables_that_are_written_as_text(tmp_path):
    trained(tmp_path / "run", steps=40, solver="q-learning")
    solution = load(tmp_path / "run", "gridworld", CPU)
    (file,) = solution.convert(tmp_path / "out", "text")
    # Comments apart: five rows of five values, then 25 of five probabilities, then 25 of five action values.
    rows = np.loadtxt(file, encoding="utf-8")
    np.testing.assert_array_equal(rows[:5], solution.values.reshape(5, 5))
    np.testing.assert_array_equal(rows[5:30], solution.policy)
    np.testing.assert_array_equal(rows[30:], solution.action_values)


@pytest.mark.shows("gridworld", "weights")
def test_an_agent_with_our_tables_earns_in_gymnasium_what_they_promise(tmp_path):
    trained(tmp_path / "run", env="FrozenLake-v1", discount=0.99, steps=600)
    load(tmp_path / "run", "gridworld", CPU).convert(tmp_path / "out", "text")
    solution = load(tmp_path / "out", None, CPU)
    environment = gymnasium.make("FrozenLake-v1")
    assert solution.values[0] == pytest.approx(0.54203, abs=5e-5)
    returns = []
    for seed in range(600):
        state, _ = environment.reset(seed=seed)
        over, gained, weight = False, 0.0, 1.0
        while not over:
            state, reward, ended, cut, _ = environment.step(solution.act(state))
            gained, weight, over = gained + weight * reward, 0.99 * weight, ended or cut
        returns.append(gained)
    # Gymnasium cuts an episode after 100 steps, which costs about 0.05 of the promise.
    assert np.mean(returns) == pytest.approx(0.54203 - 0.03, abs=4 * np.std(returns) / np.sqrt(600) + 0.03)


def test_an_agent_may_draw_its_actions_by_the_policy(tmp_path):
    trained(tmp_path / "run", steps=2, solver="sarsa", epsilon=0.5)
    solution, rng = load(tmp_path / "run", "gridworld", CPU), np.random.default_rng(0)
    counts = np.bincount([solution.act(3, rng) for _ in range(4000)], minlength=5) / 4000
    assert np.abs(counts - solution.policy[3]).max() < 0.04
    assert solution.act(3) == solution.policy[3].argmax()


def test_convert_and_report_know_tables_by_their_path(tmp_path, capsys):
    trained(tmp_path / "run", steps=5)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "text"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out/tables.txt")
    assert main(["report", str(tmp_path / "run")]) == 0


def test_worlds_without_a_grid_are_listed_state_by_state(tmp_path):
    task, figures = trained(tmp_path / "run", env="Taxi-v4", discount=0.99, solver="policy", steps=40)
    lines = task.conclude(task.method, tmp_path / "run")
    assert figures["error"] < 1e-9
    assert re.fullmatch(r"state   0  value +\S+  action \d", lines[0])
    assert "… and 460 states more" in lines[40]
    solution = load(tmp_path / "run", "gridworld", CPU)
    assert solution.draw().size == (10 * 72 + 1, 50 * 72 + 1)


def test_the_values_of_an_environment_are_the_tables_of_its_run(tmp_path):
    trained(tmp_path / "run", env="CliffWalking-v1", discount=1.0)
    solution = load(tmp_path / "run", "gridworld", CPU)
    np.testing.assert_allclose(solution.values, dp.optimal(from_environment(gymnasium.make("CliffWalking-v1"), 1.0)))
    assert solution.legend.shape == (4, 12)
    assert solution.text()[8].split() == ["↑"] + ["→"] * 10 + ["↓"] or "→" in solution.text()[7]


REFUSED = [
    ({"solver": "value", "epsilon": 0.1}, r"--epsilon is not used by --solver value, but by mc-epsilon-greedy, sarsa"),
    ({"solver": "policy", "sweeps": 5}, r"--sweeps is not used by --solver policy, but by truncated; leave it out"),
    ({"solver": "value", "transitions": 10}, r"--data\.transitions is not used by --solver value, but by sarsa"),
    ({"solver": "sarsa", "tolerance": 0.1}, r"--tolerance is not used by --solver sarsa, but by value, policy"),
    ({"solver": "sarsa", "n": 3}, r"--n is not used by --solver sarsa, but by n-step"),
    ({"solver": "sarsa", "policy": "uniform"}, r"--policy is not used by --solver sarsa, but by td0"),
    ({"solver": "mc-basic", "alpha": 0.1}, r"--alpha is not used by --solver mc-basic"),
    ({"solver": "q-learning", "epsilon": 0.2}, r"--epsilon needs --behaviour epsilon-greedy"),
    ({"solver": "sarsa", "epsilon": 1.5}, r"--epsilon is 1\.5; a share lies in \[0, 1\]"),
    ({"solver": "sarsa", "alpha": 0.0}, r"--alpha is 0\.0; it must be positive and finite"),
    ({"solver": "sarsa", "alpha_power": -1.0}, r"--alpha-power is -1\.0; it must not be negative"),
    ({"solver": "truncated", "sweeps": 0}, r"--sweeps is 0; it must be positive"),
    ({"solver": "mc-basic", "episode_length": 0}, r"--data\.episode-length is 0; it must be positive"),
    ({"solver": "td0", "policy": "sideways"}, r"--policy 'sideways' is unknown; there are uniform, optimal, up, right"),
    ({"solver": "td0", "policy": "optimal", "discount": 1.0}, r"with --discount 1 this world has no finite values"),
    ({"discount": -0.1}, r"--discount is -0\.1; it must lie in \[0, 1\]"),
    ({"r_other": float("inf")}, r"--r-other is inf; it must be finite"),
    ({"env": "FrozenLake-v1", "r_forbidden": -2.0}, r"--r-forbidden belongs to a map; --env FrozenLake-v1 has rewards"),
    ({"env": "FrozenLake-v1", "map": "map.txt"}, r"--map map\.txt and --env FrozenLake-v1: a run has one world"),
    ({"env_options": {"is_slippery": "false"}}, r"--env-options are for --env, which is not given"),
    ({"ema": 0.9}, r"--ema: tables are filled without gradients, in one process; leave it out"),
    ({"precision": "bf16"}, r"--precision: tables are filled without gradients"),
    ({"accumulate": 2}, r"--accumulate: tables are filled without gradients"),
    ({"devices": 2}, r"--devices: tables are filled without gradients, in one process"),
    ({"early_stop": 3, "eval_every": 1}, r"--early-stop: tables have no figure to stop by"),
]


@pytest.mark.shows("gridworld", "manners")
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_option_without_a_use_or_out_of_its_range_is_refused_by_name(options, message):
    with pytest.raises(RecipeError, match=message):
        build(recipe(**options))


@pytest.mark.shows("gridworld", "manners")
def test_options_of_the_optimiser_are_refused():
    from odonata.engine.recipe import AdamW, Clip, Schedule

    for name, value in (("optim", AdamW(lr=0.5)), ("schedule", Schedule(kind="linear")), ("clip", Clip("none"))):
        with pytest.raises(RecipeError, match=f"--{name}: tables are filled without gradients"):
            build(recipe(**{name: value}))


@pytest.mark.shows("gridworld", "manners")
def test_the_command_names_file_and_line_of_a_bad_map_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "map.txt").write_text("..T\n.?.\n")
    run = tmp_path / "run"
    assert main(["train", "gridworld", "--map", str(tmp_path / "map.txt"), "--out", str(run)]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'map.txt'}:2: '?' in column 2 is no cell" in told and "Traceback" not in told
    assert not run.exists()


@pytest.mark.shows("gridworld", "manners")
def test_a_run_is_not_resumed_on_another_map(tmp_path):
    (tmp_path / "map.txt").write_text("..T\n...\n")
    trained(tmp_path / "run", steps=10, map=str(tmp_path / "map.txt"))
    (tmp_path / "map.txt").write_text("..T\n.#.\n")
    changed = build(read_run_recipe(tmp_path / "run"), tmp_path / "run/assets")
    with pytest.raises(RunError, match="the data changed since the run began"):
        train(changed.recipe, changed, tmp_path / "run", WORLD, resume=True)
    (tmp_path / "map.txt").unlink()
    with pytest.raises(DataError, match=r"map\.txt: cannot read the map"):
        build(read_run_recipe(tmp_path / "run"), tmp_path / "run/assets")


def test_a_run_remembers_what_was_taken_where_nothing_was_said(tmp_path):
    trained(tmp_path / "run", steps=2, solver="mc-epsilon-greedy", alpha=0.05)
    kept = read_run_recipe(tmp_path / "run")
    assert (kept.method.alpha, kept.method.alpha_power, kept.method.epsilon_final) == (0.05, 0.0, 0.3)
    assert (kept.method.r_forbidden, kept.method.bump_on_forbidden, kept.method.tolerance) == (-1.0, "boundary", None)
    assert kept.data.episodes == 20 and kept.data.transitions is None


def test_a_mean_under_a_falling_epsilon_is_warned_of_before_the_run():
    falling = {"solver": "mc-epsilon-greedy", "epsilon": 1.0, "epsilon_final": 0.05}
    assert "those of policies long given up" in build(recipe(**falling)).notes[-1]
    assert "policies" not in build(recipe(**falling, alpha=0.02)).notes[-1]


@pytest.mark.shows("gridworld", "manners")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("# values 5 x 5\n", "# values 5 x 4\n"),
            r"tables\.txt:3: not a line of a table: 5 numbers",
        ),
        (lambda t: "\n".join(t.splitlines()[:-1]), r"tables\.txt: action_values has 24 rows and says 25"),
        (lambda t: t.replace("0.0", "zero", 1), r"tables\.txt:\d+: not a line of a table"),
        (lambda t: t.split("\n", 1)[1], r"tables\.txt:1: no line '# legend …'"),
        (lambda t: t.split("# policy")[0], r"tables\.txt: policy: want 125 numbers for 25 states, found nothing"),
        (lambda t: re.sub(r"(# policy 25 x 5\n)\S+", r"\g<1>7.0", t), r"policy of state 0: .* are no probabilities"),
    ],
    ids=["columns", "cut short", "no number", "no legend", "no policy", "no probabilities"],
)
def test_a_file_of_tables_that_is_damaged_is_refused_by_line(tmp_path, change, message):
    trained(tmp_path / "run", steps=3)
    load(tmp_path / "run", "gridworld", CPU).convert(tmp_path / "out", "text")
    file = tmp_path / "out/tables.txt"
    file.write_text(change(file.read_text()))
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "out", None, CPU)


@pytest.mark.shows("gridworld", "manners")
def test_layouts_folders_and_options_that_are_unknown_are_refused(tmp_path):
    trained(tmp_path / "run", steps=3)
    solution = load(tmp_path / "run", "gridworld", CPU)
    with pytest.raises(WeightsError, match="tables have no layout 'hf'; there are odonata, text"):
        solution.convert(tmp_path / "out", "hf")
    for layout in ("text", "odonata"):
        with pytest.raises(WeightsError, match=r"not (an )?empty"):
            solution.convert(tmp_path / "run", layout)
    with pytest.raises(RecipeError, match="--num-heads: tables have no such option"):
        load(tmp_path / "run", "gridworld", CPU, num_heads=4)
    (tmp_path / "run/assets/world.json").unlink()
    with pytest.raises(WeightsError, match=r"world\.json: missing"):
        load(tmp_path / "run", "gridworld", CPU)
