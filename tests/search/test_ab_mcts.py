"""AB-MCTS-A against its definition, and against the authors' treequest."""

from __future__ import annotations

import random
from statistics import mean, stdev

import numpy as np
import pytest
import treequest
from scipy import stats

from tests.search.driver import play_out
from toa_trl.search import make_search
from toa_trl.search.ab_mcts import _Rewards, draw_beta, draw_gaussian, squash
from toa_trl.types import Action

AGENTS = ["a", "b", "c"]
SKILL = {"a": 0.3, "b": 0.4, "c": 0.5}
REWARDS = [[], [0.7], [0.2, 0.9, 0.4, 0.4]]


def world(rng: random.Random, agent: str, parent: float | None, hardness: float) -> float:
    """A reward in [0, 1]: a refinement improves its draft a little, and often spoils it."""
    if parent is None:
        return min(max(rng.gauss(SKILL[agent] - hardness, 0.15), 0.0), 1.0)
    return min(max(parent + rng.gauss(SKILL[agent] / 10 - 0.03, 0.1), 0.0), 1.0)


def best_of_ours(prompt: int, budget: int, distribution: str) -> float:
    rng, hardness = random.Random(prompt), random.Random(f"hard/{prompt}").random() / 4
    params = {"distribution": distribution, "tau": None}
    search = make_search("ab_mcts", AGENTS, budget, prompt, **params)

    def reward(index: int, action: Action) -> float:
        parent = None if action.parent is None else search.rewards[action.parent]
        return world(rng, action.agent, parent, hardness)

    return max(play.reward or 0.0 for play in play_out(search, reward))


def best_of_theirs(prompt: int, budget: int, distribution: str) -> float:
    rng, hardness = random.Random(f"t/{prompt}"), random.Random(f"hard/{prompt}").random() / 4
    algorithm = treequest.ABMCTSA(dist_type=distribution)
    state, best = algorithm.init_tree(), 0.0
    for _ in range(budget):
        state, trial = algorithm.ask(state, AGENTS)
        reward = world(rng, trial.action, trial.parent_state, hardness)
        state = algorithm.tell(state, trial.trial_id, (reward, reward))
        best = max(best, reward)
    return best


@pytest.mark.heavy
@pytest.mark.parametrize("distribution", ["gaussian", "beta"])
def test_its_best_rewards_are_those_of_treequest(distribution: str) -> None:
    np.random.seed(0)  # treequest draws from the global generator
    ours = [best_of_ours(prompt, 16, distribution) for prompt in range(500)]
    theirs = [best_of_theirs(prompt, 16, distribution) for prompt in range(500)]
    noise = (stdev(ours) ** 2 / 500 + stdev(theirs) ** 2 / 500) ** 0.5
    assert abs(mean(ours) - mean(theirs)) < 2.6 * noise


@pytest.mark.parametrize("rewards", REWARDS)
def test_gaussian_draws_have_the_posterior_of_the_mean(rewards: list[float]) -> None:
    sums = _Rewards()
    for reward in rewards:
        sums.add(reward)
    n, average = len(rewards), float(np.mean(rewards)) if rewards else 0.0
    # normal-inverse-gamma with m = 0, kappa = 1, nu = 1, tau^2 = 0.1: a t distribution
    nu, kappa = 1 + n, 1 + n
    tau2 = (0.1 + n * float(np.var(rewards)) if rewards else 0.1) + n * average**2 / (1 + n)
    expected = stats.t(nu, n * average / kappa, (tau2 / nu / kappa) ** 0.5)
    rng = random.Random(0)
    draws = [draw_gaussian(sums, rng) for _ in range(4000)]
    assert stats.kstest(draws, expected.cdf).pvalue > 0.01


@pytest.mark.parametrize("rewards", [*REWARDS, [1.0] * 5, [0.0] * 5])
def test_beta_draws_have_the_posterior_of_the_rate(rewards: list[float]) -> None:
    sums = _Rewards()
    for reward in rewards:
        sums.add(reward)
    expected = stats.beta(0.5 + sum(rewards), 0.5 + len(rewards) - sum(rewards))
    rng = random.Random(0)
    draws = [draw_beta(sums, rng) for _ in range(4000)]
    assert stats.kstest(draws, expected.cdf).pvalue > 0.01


def test_it_deepens_where_refinements_improve_and_widens_where_they_spoil() -> None:
    def mean_depth(gain: float) -> float:
        search = make_search("ab_mcts", AGENTS, 60, tau=None)

        def reward(index: int, action: Action) -> float:
            parent = 0.4 if action.parent is None else search.rewards[action.parent]
            return parent + gain

        return mean(play.action.depth for play in play_out(search, reward))

    assert mean_depth(0.02) > 2 * mean_depth(-0.05)


@pytest.mark.parametrize("agents", [AGENTS, ["a", "c"]])
def test_the_better_agent_plays_more_often(agents: list[str]) -> None:
    search = make_search("ab_mcts", agents, 100, tau=None)
    plays = play_out(search, lambda index, action: SKILL[action.agent] + 0.1)
    num = {agent: sum(play.action.agent == agent for play in plays) for agent in agents}
    assert num["c"] > num["a"]


def test_it_refines_the_better_answers_also_where_no_refinement_tells_them_apart() -> None:
    search = make_search("ab_mcts", ["a"], 200, tau=None)
    plays = play_out(search, lambda index, action: 0.9 if action.refs else index % 2)
    parents = [play.action.refs[0] for play in plays if play.action.depth == 1]
    assert sum(search.rewards[parent] == 1 for parent in parents) > 0.6 * len(parents)


@pytest.mark.parametrize("distribution", ["gaussian", "beta"])
@pytest.mark.parametrize("tau", [0.1, None])
def test_rewards_of_any_range_are_taken(distribution: str, tau: float | None) -> None:
    search = make_search("ab_mcts", AGENTS, 40, distribution=distribution, tau=tau)
    rewards = (-1e300, 1e300, 0.0, -5.0, 7.0)
    assert len(play_out(search, lambda index, action: rewards[index % 5])) == 40


def test_squashing() -> None:
    assert squash(0.0, 0.1) == 0.5
    assert squash(0.1, 0.1) == pytest.approx(1 / (1 + np.exp(-1)))
    assert (squash(-1e300, 0.1), squash(1e300, 0.1)) == (0.0, 1.0)
