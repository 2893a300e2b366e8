"""VMAS: the contract of a joint ``VecEnv``, and tensors from simulation to update."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_happo import HAPPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.envs import joint_action_dtype
from sb3_happo.vec_env import StepInfos
from sb3_happo.vec_env.vmas_vec_env import VmasVecEnv
from tests.algorithms import small

pytest.importorskip("vmas", reason="VMAS is not installed: pip install vmas")

from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario

N_ENVS = 4
MAX_STEPS = 4


class Walkers(BaseScenario):
    """
    Two walkers on a line. Environment ``i`` terminates after ``2 + i`` steps; an agent observes how
    many it has made.
    """

    def make_world(self, batch_dim: int, device: th.device, **kwargs: Any) -> Any:
        self.parts = kwargs.pop("parts", False)
        self.broken = False
        world = World(batch_dim, device)
        for name in ("left", "right"):
            world.add_agent(Agent(name=name, collide=False))
        self.limits = 2 + th.arange(batch_dim, device=device)
        self.count = th.zeros(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        rows = slice(None) if env_index is None else env_index
        self.count[rows] = 0
        for agent in self.world.agents:
            agent.set_pos(10 * th.randn_like(agent.state.pos[rows]), batch_index=env_index)

    def observation(self, agent: Any) -> Any:
        count = self.count / 0 if self.broken and agent.name == "right" else self.count
        if self.parts:
            return {"place": agent.state.pos, "clock": {"count": count[:, None]}}
        return th.cat([agent.state.pos, count[:, None]], dim=1)

    def reward(self, agent: Any) -> th.Tensor:
        return agent.state.pos[:, 0] if agent.name == "left" else 3 * agent.state.pos[:, 0]

    def post_step(self) -> None:
        self.count += 1

    def done(self) -> th.Tensor:
        return self.count >= self.limits


class NumpyOnly(VecEnvWrapper):
    """A wrapper that changes nothing, so that actions and observations are NumPy arrays."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class Recorder(BaseCallback):
    """Keeps what the environment returned at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []
        self.steps: list[tuple[Any, np.ndarray, list[dict[str, Any]]]] = []

    def _on_step(self) -> bool:
        self.states.append(self.locals["new_obs"]["state"])
        self.steps.append((self.locals["rewards"], self.locals["dones"], self.locals["infos"]))
        return True


def walkers(n_envs: int = N_ENVS, **kwargs: Any) -> VmasVecEnv:
    settings: dict[str, Any] = {"seed": 0, "max_steps": MAX_STEPS, "device": "cpu"}
    return VmasVecEnv(Walkers(), n_envs, **(settings | kwargs))


def random_actions(venv: VecEnv, rng: np.random.Generator) -> np.ndarray:
    """Legal joint actions in the form of NumPy."""
    assert isinstance(venv.action_space, spaces.Dict)
    joint: Any = np.empty(venv.num_envs, joint_action_dtype(venv.action_space))
    for agent, space in venv.action_space.spaces.items():
        space.seed(int(rng.integers(2**31)))
        joint[agent] = [space.sample() for _ in range(venv.num_envs)]
    return joint


def as_tensors(joint: np.ndarray) -> dict[str, th.Tensor]:
    return {
        agent: th.from_numpy(np.ascontiguousarray(joint[agent]))
        for agent in joint.dtype.names or ()
    }


def trainee(algorithm: type[HAPPO], env: Any, **kwargs: Any) -> HAPPO:
    return small(algorithm, env, **({"n_steps": 8, "seed": 0} | kwargs))


# ---------------------------------------------------------------- the contract


def test_arguments_that_no_scenario_knows() -> None:
    """VMAS itself would go on without them."""
    with pytest.raises(
        ValueError,
        match=r"\{'n_agentz': 3\} passed but not used by the scenario. Correct or remove them",
    ):
        make_joint_vec_env("vmas/balance", 2, env_kwargs={"n_agentz": 3})


@pytest.mark.parametrize("form", ["continuous", "discrete", "multidiscrete"])
@pytest.mark.parametrize(
    "scenario", ["balance", "simple_reference"]
)  # the agents of the second speak as well
def test_contract(scenario: str, form: str) -> None:
    forms = {
        "continuous_actions": form == "continuous",
        "multidiscrete_actions": form == "multidiscrete",
    }
    venv = make_joint_vec_env(
        f"vmas/{scenario}", 3, seed=0, env_kwargs={"device": "cpu", "max_steps": 5, **forms}
    )
    assert isinstance(venv, VmasVecEnv) and isinstance(venv.observation_space, spaces.Dict)
    assert (
        venv.agents
        == tuple(venv.action_space.spaces)
        == tuple(agent.name for agent in venv.env.agents)
    )
    kind = {
        "continuous": spaces.Box,
        "discrete": spaces.Discrete,
        "multidiscrete": spaces.MultiDiscrete,
    }[form]
    assert all(isinstance(space, kind) for space in venv.action_space.spaces.values())
    assert tuple(venv.observation_space.spaces) == (*venv.agents, "state")

    rng = np.random.default_rng(0)
    obs = venv.reset()
    for _ in range(7):
        for key, space in venv.observation_space.spaces.items():
            assert obs[key].shape == (3, *space.shape) and obs[key].dtype == space.dtype  # type: ignore[misc]
        assert np.array_equal(
            obs["state"], np.concatenate([obs[agent] for agent in venv.agents], axis=1)
        )
        obs, rewards, dones, infos = venv.step(random_actions(venv, rng))  # type: ignore[assignment]
        assert (
            rewards.shape == dones.shape == (3,)
            and rewards.dtype == np.float32
            and dones.dtype == bool
        )
        assert all(
            np.isclose(info["agent_rewards"].mean(), reward)
            for info, reward in zip(infos, rewards, strict=True)
        )
        assert all(
            ("terminal_observation" in info) == done
            for info, done in zip(infos, dones, strict=True)
        )


def test_each_environment_ends_in_its_own_time() -> None:
    venv = walkers()
    obs = venv.reset()
    ends = {
        2: [0],
        3: [1],
        4: [0, 2, 3],
    }  # environment 3 would have gone on: it is cut; 2 ends by itself at that very step
    count = np.zeros(N_ENVS)
    for step in range(1, 5):
        before = obs
        obs, _, dones, infos = venv.step(random_actions(venv, np.random.default_rng(step)))  # type: ignore[assignment]
        count += 1
        assert np.flatnonzero(dones).tolist() == ends.get(step, [])
        assert [info["TimeLimit.truncated"] for info in infos] == [False, False, False, step == 4]
        for index in np.flatnonzero(dones):
            last = infos[index]["terminal_observation"]
            assert last["left"][2] == count[index] and set(last) == set(
                venv.observation_space.spaces
            )
            assert infos[index]["episode"]["l"] == count[index]
            # It begins anew, somewhere else
            assert not np.allclose(obs["left"][index, :2], last["left"][:2], atol=0.3)
        count[dones] = 0
        assert np.array_equal(obs["left"][:, 2], count)
        assert (
            np.abs(obs["left"][~dones, :2] - before["left"][~dones, :2]).max(initial=0.0) < 0.3
        )  # the others walk on


def test_all_end_at_once() -> None:
    venv = VmasVecEnv("simple_spread", 3, seed=0, max_steps=2, device="cpu")
    first = venv.reset()
    last: Any = None
    for done in (False, True, False, True):
        obs, _, dones, infos = venv.step(random_actions(venv, np.random.default_rng(0)))
        assert (dones == done).all() and all(info["TimeLimit.truncated"] == done for info in infos)
        last = obs if done else last
    assert not np.array_equal(first["state"], last["state"])
    assert not np.array_equal(infos[0]["terminal_observation"]["state"], last["state"][0])


def test_observations_in_parts() -> None:
    venv = walkers(parts=True)
    keys = ["left/place", "left/clock/count", "right/place", "right/clock/count", "state"]
    assert list(venv.observation_space.spaces) == keys and list(venv.reset()) == keys
    assert venv.observation_space["state"].shape == (6,)
    trainee(HAPPO, venv).learn(64)


@pytest.mark.parametrize(
    ("team_reward", "expected"),
    [
        ("mean", [0.5, 0.5]),
        ("sum", [1.0, 1.0]),
        ("right", [0.0, 1.0]),
        (lambda own: own.max(dim=1)[0], None),
    ],
)
def test_team_rewards_and_states(team_reward: Any, expected: list[float] | None) -> None:
    def state(simulator: Any, obs: dict[str, th.Tensor]) -> th.Tensor:
        return th.stack([simulator.steps, obs["left"][:, 2]], dim=1)

    venv = walkers(team_reward=team_reward, state=state)
    venv.reset()
    obs, rewards, _, infos = venv.step(random_actions(venv, np.random.default_rng(0)))
    own = np.stack([info["agent_rewards"] for info in infos])
    assert np.allclose(rewards, own.max(axis=1) if expected is None else own @ expected)
    assert np.array_equal(obs["state"], np.ones((N_ENVS, 2)))  # type: ignore[call-overload]


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("continuous", [True, False])
def test_tensors_are_the_same_as_numpy(continuous: bool) -> None:
    arrays, tensors = (walkers(continuous_actions=continuous) for _ in range(2))
    start, other = arrays.reset(), tensors.reset()
    assert all(np.array_equal(part, other[key]) for key, part in start.items())
    rng = np.random.default_rng(0)
    for _ in range(12):
        joint = random_actions(arrays, rng)
        obs, rewards, dones, infos = arrays.step(joint)
        t_obs, t_rewards, t_dones, t_infos = tensors.step(as_tensors(joint))  # type: ignore[arg-type]
        assert isinstance(obs, dict) and all(
            isinstance(part, np.ndarray) for part in (*obs.values(), rewards, t_dones)
        )
        assert all(isinstance(part, th.Tensor) for part in (*t_obs.values(), t_rewards))  # type: ignore[union-attr]
        assert all(np.array_equal(part, t_obs[key]) for key, part in obs.items())  # type: ignore[call-overload]
        assert np.array_equal(rewards, t_rewards) and np.array_equal(dones, t_dones)
        assert isinstance(infos, StepInfos) and isinstance(t_infos, StepInfos)
        facts, t_facts = infos.facts, t_infos.facts
        own = np.stack([info["agent_rewards"] for info in infos])
        assert isinstance(facts.agent_rewards, np.ndarray)
        assert isinstance(t_facts.agent_rewards, th.Tensor)
        cut = [info["TimeLimit.truncated"] for info in infos]
        for one in (facts, t_facts):
            assert np.array_equal(one.agent_rewards, own)
            assert np.array_equal(one.dones, dones) and one.truncated.tolist() == cut
            assert one.active is None and one.waiting is None
        for info, t_info in zip(infos, t_infos, strict=True):
            assert np.array_equal(info["agent_rewards"], t_info["agent_rewards"]) and set(
                info
            ) == set(t_info)
            for key, part in info.get("terminal_observation", {}).items():
                assert isinstance(t_info["terminal_observation"][key], th.Tensor)
                assert np.array_equal(part, t_info["terminal_observation"][key])


@pytest.mark.parametrize("algorithm", [HAPPO, MAPPO, IPPO])
@pytest.mark.parametrize("continuous", [True, False])
def test_training_is_the_same_by_tensors_and_by_numpy(
    algorithm: type[HAPPO], continuous: bool
) -> None:
    def train(env: VecEnv, kind: type) -> HAPPO:
        recorder = Recorder()
        model = trainee(algorithm, env).learn(4 * 8 * N_ENVS, callback=recorder)
        assert recorder.states
        assert all(isinstance(state, kind) for state in recorder.states)
        return model

    by_tensors = train(walkers(continuous_actions=continuous), th.Tensor)
    by_numpy = train(NumpyOnly(walkers(continuous_actions=continuous)), np.ndarray)
    for name, parameter in by_tensors.policy.state_dict().items():
        assert th.equal(parameter, by_numpy.policy.state_dict()[name]), name
    returns = [[own["r"] for own in model.ep_info_buffer or ()] for model in (by_tensors, by_numpy)]
    assert returns[0] == returns[1]


def test_nan_is_refused_with_its_place() -> None:
    venv = walkers()
    model = trainee(HAPPO, venv).learn(64)
    venv.env.scenario.broken = True
    with pytest.raises(ValueError, match=r"observation 'right'.*environment 0"):
        model.learn(64)


@pytest.mark.gpu
def test_training_on_a_gpu() -> None:
    venv = walkers(device="auto")
    recorder = Recorder()
    model = trainee(HAPPO, venv, device="auto").learn(128, callback=recorder)
    assert venv.device.type == model.device.type == "cuda"
    assert all(rewards.is_cuda for rewards, _, _ in recorder.steps)
    evaluate_policy(model, venv, n_eval_episodes=4)
    trainee(HAPPO, walkers(), device="auto").learn(128)  # simulated on the CPU
    trainee(HAPPO, walkers(device="auto"), device="cpu").learn(128)


# ---------------------------------------------------------------- seeds


def test_seeds() -> None:
    def play(venv: VmasVecEnv, others: VmasVecEnv | None = None) -> np.ndarray:
        rng = np.random.default_rng(0)
        states = [venv.reset()["state"]]
        for _ in range(9):
            if others is not None:
                others.step(random_actions(others, np.random.default_rng(1)))
            states.append(venv.step(random_actions(venv, rng))[0]["state"])  # type: ignore[call-overload]
        return np.stack(states)

    episodes = play(walkers(seed=3))
    assert np.array_equal(episodes, play(walkers(seed=3)))
    others = walkers(seed=4)
    others.reset()
    assert np.array_equal(episodes, play(walkers(seed=3), others)), (
        "another simulator in the process has a say"
    )
    assert not np.array_equal(episodes, play(walkers(seed=4)))
    assert not np.array_equal(play(walkers(seed=None)), play(walkers(seed=None)))
    venv = walkers(seed=4)
    venv.seed(3)
    assert np.array_equal(episodes, play(venv))
    assert not np.array_equal(episodes, play(venv)), "a seed counts for one reset"


# ---------------------------------------------------------------- episodes in the algorithms


def test_time_limits_are_bootstrapped() -> None:
    recorder = Recorder()
    model = trainee(
        HAPPO, walkers(), n_steps=4, n_epochs=1, learning_rate=0.0, normalize_value=False, gamma=0.9
    )
    model.learn(4 * N_ENVS, callback=recorder)
    expected = th.stack([rewards for rewards, _, _ in recorder.steps])  # (n_steps, n_envs)
    last = recorder.steps[3][2][3]["terminal_observation"]
    assert last["left"][2] == MAX_STEPS
    with th.no_grad():
        value = model.policy.predict_values(
            {key: part[None] for key, part in last.items()}
        ).squeeze()
    assert value.abs() > 1e-3
    expected[3, 3] += 0.9 * value
    assert th.allclose(model.rollout_buffer.rewards.squeeze(2), expected)
    starts = th.zeros(4, N_ENVS)
    starts[0] = starts[2, 0] = starts[3, 1] = (
        1.0  # what begins after the last step comes in the next rollout
    )
    assert th.equal(model.rollout_buffer.episode_starts, starts)


def test_episode_statistics() -> None:
    recorder = Recorder()
    model = trainee(HAPPO, walkers()).learn(8 * N_ENVS, callback=recorder)
    returns, lengths = np.zeros(N_ENVS), np.zeros(N_ENVS)
    n_episodes = 0
    for rewards, dones, infos in recorder.steps:
        returns += rewards.numpy()
        lengths += 1
        for index, info in enumerate(infos):
            assert ("episode" in info) == dones[index]
            if dones[index]:
                assert info["episode"]["r"] == pytest.approx(returns[index], abs=1e-5)
                assert info["episode"]["l"] == lengths[index] and info["episode"]["t"] >= 0
                returns[index] = lengths[index] = 0
                n_episodes += 1
    assert n_episodes == len(model.ep_info_buffer or ()) > 0


@pytest.mark.parametrize(
    "wrap", [VecMonitor, lambda venv: VecNormalize(venv, norm_reward=False), NumpyOnly]
)
def test_wrappers(wrap: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already wrapped with a `Monitor`.*")
        env = wrap(walkers())
    model = trainee(HAPPO, env).learn(128)
    assert len(model.ep_info_buffer or ()) > 0
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


def test_save_load_predict_evaluate(tmp_path: Path) -> None:
    venv = walkers()
    model = trainee(HAPPO, venv).learn(64)
    model.save(tmp_path / "model")
    loaded = HAPPO.load(tmp_path / "model", walkers(seed=1), device="cpu")
    obs = venv.reset()
    joint, _ = loaded.predict(obs, deterministic=True)
    assert joint.dtype == joint_action_dtype(venv.action_space) and joint.shape == (N_ENVS,)
    assert np.array_equal(joint, model.predict(obs, deterministic=True)[0])
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no Monitor is missed
        returns, lengths = evaluate_policy(
            loaded, walkers(), n_eval_episodes=8, return_episode_rewards=True
        )
    assert isinstance(lengths, list) and sorted(set(lengths)) == [2, 3, 4] and len(returns) == 8  # type: ignore[arg-type]


def test_an_id_is_enough() -> None:
    model = HAPPO("vmas/simple_spread", n_steps=8, batch_size=8, device="cpu", seed=0).learn(8)
    assert isinstance(model.env, VmasVecEnv) and model.env.num_envs == 1
    assert model.agents == ("agent_0", "agent_1", "agent_2")


# ---------------------------------------------------------------- the rest of VecEnv


def test_attributes_and_methods() -> None:
    venv = walkers()
    assert venv.get_attr("agents") == [("left", "right")] * N_ENVS
    assert venv.get_attr("max_steps", indices=[0, 2]) == [MAX_STEPS] * 2
    venv.set_attr("max_steps", 1)
    venv.reset()
    assert venv.step(random_actions(venv, np.random.default_rng(0)))[2].all()
    with pytest.raises(ValueError, match="share 'max_steps'"):
        venv.set_attr("max_steps", 9, indices=0)
    assert not venv.has_attr("wings")
    sizes = venv.env_method("get_agent_action_size", venv.env.agents[0])
    assert sizes == [2] * N_ENVS
    assert venv.env_is_wrapped(Monitor, indices=0) == [True]
    assert set(venv.agent_infos) == {"left", "right"}


def test_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = walkers()
    monkeypatch.setattr(
        venv.env, "render", lambda mode, env_index: np.full((8, 8, 3), env_index, np.uint8)
    )
    assert [image.max() for image in venv.get_images() if image is not None] == list(range(N_ENVS))
    assert venv.render() is not None

    def fail(mode: str, env_index: int) -> None:
        raise NameError("no screen")

    monkeypatch.setattr(venv.env, "render", fail)
    with pytest.raises(RuntimeError, match=r"no screen.*xvfb-run"):
        venv.get_images()
    venv.close()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'navigation'"):
        make_joint_vec_env("vmas/navigaton")
    with pytest.raises(ValueError, match="neither 'mean', 'sum'"):
        walkers(team_reward="middle")
    with pytest.raises(ValueError, match="neither None, 'observations'"):
        walkers(state="env")
    venv = walkers()
    venv.reset()
    with pytest.raises(ValueError, match=r"the team is \['left', 'right'\]"):
        venv.step({"left": th.zeros(N_ENVS, 2)})  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "vmas", None)
    with pytest.raises(ImportError, match="pip install vmas"):
        make_joint_vec_env("vmas/navigation")
