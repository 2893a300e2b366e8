"""Large teams: work in proportion to the number of agents, and answers that do not depend on it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HAPPO, IPPO, MAPPO, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.type_aliases import ActorBatch

N_AGENTS = 6


class Crowd:
    """Equal agents; the first one dies in the first step."""

    metadata: Any = None
    render_mode = None

    def __init__(
        self, space: spaces.Space | None = None, masked: bool = False, n_agents: int = N_AGENTS
    ) -> None:
        self.metadata = {}
        self.possible_agents = [f"agent_{index}" for index in range(n_agents)]
        self.agents = list(self.possible_agents)
        self.own = spaces.Box(-1, 1, (3,), np.float32)
        self.actions = space or spaces.Discrete(4)
        self.masked = masked
        self.rng = np.random.default_rng(0)

    def observation_space(self, agent: str) -> spaces.Space:
        return self.own

    def action_space(self, agent: str) -> spaces.Space:
        return self.actions

    def answers(self) -> tuple[dict, dict]:
        infos: dict[str, dict[str, np.ndarray]] = {agent: {} for agent in self.agents}
        if self.masked:
            infos = {agent: {"action_mask": self.mask()} for agent in self.agents}
        observations = {}
        for agent in self.agents:
            observations[agent] = self.rng.uniform(-1, 1, 3).astype(np.float32)
        return observations, infos

    def mask(self) -> np.ndarray:
        mask = self.rng.integers(0, 2, 4).astype(np.int8)
        mask[self.rng.integers(4)] = 1
        return mask

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.agents = list(self.possible_agents)
        self.steps = 0
        return self.answers()

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.steps += 1
        acting, over = self.agents, self.steps == 5
        self.agents = [] if over else self.possible_agents[1:]
        self.agents, alive = acting, self.agents
        observations, infos = self.answers()
        self.agents = alive
        terminations = {agent: over or agent == "agent_0" for agent in acting}
        rewards = {agent: float(observations[agent][0]) for agent in acting}
        return observations, rewards, terminations, dict.fromkeys(acting, False), infos

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("MlpPolicy", {}, {}),
    "continuous": ("MlpPolicy", {"space": spaces.Box(-2, 1, (2,), np.float32)}, {}),
    "nested": (
        "MlpPolicy",
        {"space": spaces.Dict(move=spaces.Box(-1, 1, (2,)), word=spaces.Discrete(3, start=1))},
        {},
    ),
    "masked": ("MlpPolicy", {"masked": True}, {}),
    "lstm": ("MlpLstmPolicy", {}, {}),
    "gru": ("MlpGruPolicy", {}, {}),
    "shared": ("MlpPolicy", {}, {"share_parameters": True, "append_agent_id": True}),
    "pairs": ("MlpLstmPolicy", {}, {"share_parameters": [["agent_0", "agent_2"]]}),
}


def make(form: str, algorithm: type[HAPPO] = HAPPO, **kwargs: Any) -> HAPPO:
    policy, env_kwargs, policy_kwargs = FORMS[form]
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "seed": 0} | kwargs
    return algorithm(policy, Crowd(**env_kwargs), policy_kwargs=policy_kwargs, **settings)


def calls_of_agents(monkeypatch: pytest.MonkeyPatch) -> list[AgentPolicy]:
    """The policies whose ``predict`` is called from now on, in order."""
    calls: list[AgentPolicy] = []
    predict = AgentPolicy.predict

    def counted(self: AgentPolicy, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(AgentPolicy, "predict", counted)
    return calls


def assert_close(one: Any, other: Any) -> None:
    """Compare actions of any nesting."""
    if isinstance(one, dict):
        for key in one:
            assert_close(one[key], other[key])
    else:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_team_answers_as_its_agents_do(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(form)
    obs, infos = (env := Crowd(**FORMS[form][1])).reset()
    state: Any = None
    alone: dict[str, Any] = dict.fromkeys(obs)
    for _ in range(3):
        masks = {agent: info["action_mask"] for agent, info in infos.items() if info} or None
        calls = calls_of_agents(monkeypatch)
        joint, state = model.predict(obs, state, deterministic=True, action_masks=masks)
        assert not calls
        for agent, own in obs.items():
            mask = None if masks is None else masks[agent]
            single, alone[agent] = model.policies[agent].predict(
                own, alone[agent], deterministic=True, action_masks=mask
            )
            assert_close(joint[agent], single)
            assert type(joint[agent]) is type(single)
            assert env.action_space(agent).contains(joint[agent])
            if alone[agent] is not None:
                assert_close(list(state[agent]), list(alone[agent]))
        obs, *_, infos = env.step(joint)


@pytest.mark.parametrize("form", ["plain", "masked", "lstm", "shared"])
def test_batches_and_subsets_are_answered_as_by_the_agents(form: str) -> None:
    model = make(form)
    assert model.env is not None
    obs = model.env.reset()
    assert isinstance(obs, dict)
    batch = {key: np.repeat(value, 3, axis=0) for key, value in obs.items()}
    joint, _ = model.predict(batch, deterministic=True)
    some = {key: value for key, value in batch.items() if "_1" in key or "_4" in key}
    part, state = model.predict(some, deterministic=True)
    assert part.dtype.names == ("agent_1", "agent_4")
    for agent in part.dtype.names:
        own, mask = batch[agent], batch.get(f"{agent}/action_mask")
        single, _ = model.policies[agent].predict(own, deterministic=True, action_masks=mask)
        np.testing.assert_array_equal(part[agent], single)
        np.testing.assert_array_equal(joint[agent], single)
    assert state is None or set(state) == {"agent_1", "agent_4"}


def shift(model: HAPPO) -> None:
    for policy in model.policies.values():
        policy.head.bias.data += th.tensor([0.0, 0.0, 0.0, 100.0])


def overwrite(model: HAPPO) -> None:
    with th.no_grad():
        model.policies["agent_2"].head.bias[3] = 100.0


def replace(model: HAPPO) -> None:
    head = th.nn.Linear(128, 4)
    th.nn.init.constant_(head.bias, 0.0)
    with th.no_grad():
        head.bias[3] = 100.0
    model.policies["agent_2"].head = head


def load(model: HAPPO) -> None:
    params = model.get_parameters()
    for key in params["policy"]:
        if key.endswith("head.bias") and key.startswith("actors"):
            params["policy"][key] = th.tensor([0.0, 0.0, 0.0, 100.0])
    model.set_parameters(params)


@pytest.mark.parametrize("algorithm", [HAPPO, MAPPO])
@pytest.mark.parametrize("change", [shift, overwrite, replace, load])
def test_predict_follows_every_change_of_the_weights(
    algorithm: type[HAPPO], change: Callable[[HAPPO], None]
) -> None:
    model = make("plain", algorithm)
    obs, _ = Crowd().reset()
    model.predict(obs)
    change(model)
    joint, _ = model.predict(obs, deterministic=True)
    assert joint["agent_2"] == 3
    model.learn(32)
    joint, _ = model.predict(obs, deterministic=True)
    for agent, own in obs.items():
        assert joint[agent] == model.policies[agent].predict(own, deterministic=True)[0]


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy", "MlpGruPolicy"])
def test_a_shared_network_takes_one_pass_per_minibatch(policy: str) -> None:
    class Counting(MAPPO):
        sizes: tuple[int, ...] = ()

        def _policy_loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
            self.sizes = (*self.sizes, len(log_prob))
            return super()._policy_loss(log_prob, batch)

    kwargs = {"share_parameters": True, "append_agent_id": True}
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": None, "n_epochs": 2, "seed": 0}
    model = Counting(policy, Crowd(), policy_kwargs=kwargs, **settings)
    model.learn(8)
    # One agent of six is dead after the first step of an episode
    assert len(model.sizes) == 2
    assert 5 * 8 < model.sizes[0] < 6 * 8


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_joint_batch_is_evaluated_as_the_agents_are(policy: str) -> None:
    class Checked(MAPPO):
        n_checked = 0

        def _actor_terms(self, policy: AgentPolicy, batch: ActorBatch) -> th.Tensor:
            # Before the first step the policy is that of the collection
            if not self._n_updates and not self.n_checked:
                log_prob, _ = policy.evaluate_batch(batch)
                th.testing.assert_close(log_prob, batch.old_log_prob, rtol=1e-4, atol=1e-4)
                self.n_checked = len(log_prob)
            return super()._actor_terms(policy, batch)

    kwargs = {"share_parameters": True, "append_agent_id": True}
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "seed": 0}
    model = Checked(policy, Crowd(), policy_kwargs=kwargs, **settings)
    model.learn(16)
    assert model.n_checked > 16


def test_states_that_nobody_reads_are_not_stored() -> None:
    model = make("plain", IPPO)
    assert "state" not in model.rollout_buffer.observations
    assert "agent_0" in model.rollout_buffer.observations
    assert "state" in make("plain", MAPPO).rollout_buffer.observations


def test_memory_of_a_rollout_is_announced_and_bounded(capsys: pytest.CaptureFixture) -> None:
    model = HAPPO("MlpPolicy", Crowd(), n_steps=16, batch_size=8, verbose=1)
    assert "A rollout takes 0.0 MB (largest entry" in capsys.readouterr().out
    env = JointEnv(Crowd(n_agents=50), state="agent")
    with pytest.raises(MemoryError, match=r"takes .* GB .*'agent_states'.*`n_steps`"):
        HAPPO("MlpPolicy", env, n_steps=10**9, batch_size=None)
    assert model.rollout_buffer.n_rows == 16


def test_steps_with_a_dead_agent_compare_each_agent_a_few_times() -> None:
    class Name(str):
        n_compared = 0

        def __eq__(self, other: object) -> bool:
            Name.n_compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    counts = []
    for n_agents in (20, 80):
        crowd = Crowd(n_agents=n_agents)
        crowd.possible_agents = [Name(agent) for agent in crowd.possible_agents]
        env = JointEnv(crowd)
        env.reset()
        env.step(dict.fromkeys(env.agents, 0))
        Name.n_compared = 0
        env.step(dict.fromkeys(env.agents, 0))
        counts.append(Name.n_compared)
    assert counts[1] <= 4.5 * max(counts[0], 1)


@pytest.mark.parametrize(("map_size", "n_agents"), [(20, 24), (42, 128)])
def test_battles_of_magent_train(map_size: int, n_agents: int) -> None:
    environments = pytest.importorskip("magent2.environments")
    env = environments.battle_v4.parallel_env(map_size=map_size, max_cycles=10)
    model = MAPPO("MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0)
    assert len(model.agents) >= n_agents
    model.learn(4)
    assert model.num_timesteps == 4
