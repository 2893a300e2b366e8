"""What the README prints runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.envs.checker import check_marl_env

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def custom_environment() -> dict[str, Any]:
    """The names that the README's custom environment defines, after its training."""
    match = re.search(r"<!-- test: custom environment -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match is not None
    assert len(match[1].splitlines()) < 50
    assert len(match[1].partition("model =")[0].partition("class ")[2].splitlines()) < 40
    scope: dict[str, Any] = {}
    exec(match[1], scope)
    return scope


def mean_return(scope: dict[str, Any], act: Any) -> float:
    """Of the README's environment, over 20 episodes."""
    env, total = scope["Rendezvous"](), 0.0
    for seed in range(20):
        observations, _ = env.reset(seed=seed)
        while env.agents:
            observations, rewards, *_ = env.step(act(env, observations))
            total += rewards["walker"] / 20
    return total


def test_custom_environment_learns(custom_environment: dict[str, Any]) -> None:
    """The team of two kinds of agents comes together."""
    model = custom_environment["model"]
    random = mean_return(
        custom_environment,
        lambda env, _: {agent: env.action_space(agent).sample() for agent in env.agents},
    )
    trained = mean_return(
        custom_environment, lambda _, obs: model.predict(obs, deterministic=True)[0]
    )
    assert trained > 0.5 * random  # returns are negative


def test_custom_environment_is_sound(custom_environment: dict[str, Any]) -> None:
    """The package's own doctor finds nothing."""
    report = check_marl_env(custom_environment["Rendezvous"]())
    assert report.ok
    assert not report.findings


def test_deployment_of_one_agent(
    custom_environment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks under "Deploying one agent", one after the other."""
    monkeypatch.chdir(tmp_path)
    section = README.split("## Deploying one agent")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    scope = {"model": custom_environment["model"], "np": np}
    for block in blocks:
        exec(block, scope)
    assert scope["action"].shape == (1,)
    expected, _ = custom_environment["model"].predict(
        {"glider": np.array([1.0, -2.0], np.float32)}, deterministic=True
    )
    assert np.array_equal(scope["action"], expected["glider"])


def test_deployment_with_normalised_observations_and_without_the_package(
    custom_environment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The blocks of docs/deployment.md; what they say is what the model does behind VecNormalize.
    """
    monkeypatch.chdir(tmp_path)
    env = VecNormalize(make_joint_vec_env(custom_environment["Rendezvous"], 2, seed=0))
    model = HAPPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0).learn(256)
    model.policies["glider"].save("glider.zip")
    env.save("vecnormalize.zip")
    text = (Path(__file__).parent.parent / "docs" / "deployment.md").read_text()
    scope: dict[str, Any] = {}
    first, second = "## Observations that were normalised", "## PyTorch without this package"
    for title in (first, second):
        section = text.split(title)[1].split("\n## ")[0]
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, scope)
    assert isinstance(env.observation_space, spaces.Dict)
    joint = {}
    for key, space in env.observation_space.spaces.items():
        joint[key] = np.zeros(space.shape or (), np.float32)
    joint["glider"] = np.array([1.0, -2.0], np.float32)
    expected, _ = model.predict({"glider": env.normalize_obs(joint)["glider"]}, deterministic=True)
    assert np.allclose(scope["action"], expected["glider"])
    assert np.allclose(scope["actions"].numpy(), expected["glider"][None], atol=1e-6)


def test_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example, with a training a thousand times shorter."""
    pytest.importorskip("mpe2")
    monkeypatch.chdir(tmp_path)
    match = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.DOTALL)
    assert match is not None
    scope: dict[str, Any] = {}
    exec(match[1].replace("1e6", "1e3").replace("n_eval_episodes=100", "n_eval_episodes=2"), scope)
    assert set(scope["actions"]) == {"agent_0", "agent_1", "agent_2"}


def test_the_developer_guides_algorithm_trains() -> None:
    """It is complete in under 50 lines, and learns by its own objective."""
    text = (Path(__file__).parent.parent / "docs" / "developer.md").read_text()
    match = re.search(r"<!-- test: sibling -->\n```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    assert len(match[1].splitlines()) < 50
    scope: dict[str, Any] = {}
    exec(match[1], scope)
    assert scope["model"].num_timesteps == 256
    algorithm: Any = scope["HSPO"]

    class Probe(algorithm):
        """The algorithm with its hook in public."""

        def loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
            return self._policy_loss(log_prob, batch)

    ratio, factor, advantages = th.tensor([1.5, 0.5]), th.ones(2), th.tensor([2.0, -1.0])
    batch = ActorBatch(th.zeros(2), th.zeros(2, 1), None, th.zeros(2), advantages, factor)
    model = Probe("CartPole-v1")
    # 1.5 * 2 - 2 * 0.5^2 / 0.4 = 1.75 and -0.5 - 1 * 0.5^2 / 0.4 = -1.125, with clip_range 0.2
    assert model.loss(ratio.log(), batch).item() == pytest.approx(-(1.75 - 1.125) / 2)
