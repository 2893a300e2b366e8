"""Faults in trainings of the off-policy algorithms: what is left, and what the error names."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo import HASAC, HATD3, IQL, QMIX, VDN, JointEnv, make_joint_vec_env
from sb3_happo.common.finite import NotFiniteError, check_finite
from sb3_happo.vec_env import JointSubprocVecEnv, VecNormalizeTeam
from sb3_happo.vec_env.watchdog import WorkerTimeoutError
from tests.envs.games import RandomTeam
from tests.off_policy import small

ALGORITHMS: list[Any] = [HATD3, HASAC, IQL, QMIX]
_DISCRETE = (IQL, VDN, QMIX)


class Faulty(RandomTeam):
    """Fails, or returns NaN, at one of its steps, counted over all episodes."""

    def __init__(self, space: spaces.Space, step: int, what: str) -> None:
        super().__init__({"arm": space, "leg": space})
        self.left, self.what = step, what

    def step(self, actions: dict[Any, Any]) -> Any:
        self.left -= 1
        answer = super().step(actions)
        if self.left == 0:
            if self.what == "error":
                raise ZeroDivisionError("the simulator is broken")
            answer[0]["leg"] = answer[0]["leg"] * np.nan
        return answer


def team(algorithm: Any, step: int = -1, what: str = "error") -> JointEnv:
    space: spaces.Space = spaces.Box(-1, 1, (2,))
    if algorithm in _DISCRETE:
        space = spaces.Discrete(3)
    return JointEnv(Faulty(space, step, what))


def make(algorithm: Any, env: Any, folder: Path, **kwargs: Any) -> Any:
    if algorithm in _DISCRETE:
        kwargs = {"train_freq": 1} | kwargs
    model: Any = small(algorithm, env, seed=0, **kwargs)
    model.last_good_folder = str(folder)
    return model


def state_of(model: Any) -> dict[str, Any]:
    """Weights, targets, optimisers and temperatures, copied."""
    found: dict[str, Any] = {}
    for name, state in model.get_parameters().items():
        _flatten(name, state, found)
    for name in model._get_torch_save_params()[1]:
        found[name] = getattr(model, name).detach().clone()
    return found


def _flatten(name: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, own in value.items():
            _flatten(f"{name}.{key}", own, found)
    elif isinstance(value, th.Tensor):
        found[name] = value.detach().clone()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(th.equal(one[name], other[name]) for name in one)


class Recorder(BaseCallback):
    """Keeps the state before each collection of experience; calls a function at a timestep."""

    def __init__(self, at: int = -1, act: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self.at, self.act = at, act
        self.states: list[dict[str, Any]] = []
        self.n_updates: list[int] = []

    def _on_rollout_start(self) -> None:
        self.states.append(state_of(self.model))
        self.n_updates.append(self.model._n_updates)

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at and self.act is not None:
            self.act(self.model)
        return True


def check_saved(model: Any, error: BaseException, folder: Path, expected: dict[str, Any]) -> None:
    """The model, and the file that the error names, have the expected state."""
    path = folder / "last_good.zip"
    assert model.last_good_path == str(path) and str(path) in str(error)
    assert same(state_of(model), expected)
    loaded = type(model).load(path, device="cpu", check_class=False)
    check_finite(loaded)
    assert loaded._n_updates == model._n_updates
    weights = {name: value for name, value in expected.items() if name.startswith("policy.")}
    state = state_of(loaded)
    assert all(th.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("what", ["error", "nan"])
def test_an_environment_that_fails(algorithm: Any, what: str, tmp_path: Path) -> None:
    model = make(algorithm, team(algorithm, 40, what), tmp_path)
    recorder = Recorder()
    with pytest.raises((ZeroDivisionError, ValueError), match=r"broken|'leg'") as caught:
        model.learn(64, recorder)
    check_saved(model, caught.value, tmp_path, recorder.states[-1])
    assert model._n_updates == recorder.n_updates[-1] > 10
    # The model itself goes on
    model.set_env(team(algorithm))
    model.learn(30, reset_num_timesteps=False)


class FailingUpdate(HATD3):
    """An update ends in an error after the critic and one agent were changed."""

    def _ascend(self, agent: str, *args: Any) -> None:
        if agent == "leg" and self._n_updates >= 20:
            raise RuntimeError("no memory left")
        super()._ascend(agent, *args)


def test_an_update_that_fails(tmp_path: Path) -> None:
    """All networks, targets and optimisers go back to those before this update."""
    model = make(FailingUpdate, team(HATD3), tmp_path, agent_order="fixed", gradient_steps=3)
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="no memory left") as caught:
        model.learn(64, recorder)
    assert model._n_updates == 18
    check_saved(model, caught.value, tmp_path, recorder.states[-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("owner", ["leg", "critic"])
@pytest.mark.filterwarnings("ignore:.*was left out")
def test_nan_in_weights(algorithm: Any, owner: str, tmp_path: Path) -> None:
    """Set by a callback while experience is collected."""
    if algorithm is IQL and owner == "critic":
        pytest.skip("IQL has no critic")

    def spoil(model: Any) -> None:
        module = model.critic if owner == "critic" else model.policies[owner]
        with th.no_grad():
            next(iter(module.parameters())).fill_(np.nan)

    model = make(algorithm, team(algorithm), tmp_path)
    recorder = Recorder(40, spoil)
    named = "the critic" if owner == "critic" else "agent 'leg'"
    with pytest.raises(NotFiniteError, match=named) as caught:
        model.learn(64, recorder)
    n_good = recorder.n_updates.index(model._n_updates)
    assert model._n_updates == 19, "updates up to the step before"
    check_saved(model, caught.value, tmp_path, recorder.states[n_good])


class NanGradients(HASAC):
    """The loss of an agent is NaN from the tenth update on."""

    def _decide(self, agent: str, data: Any) -> Any:
        choices, sample = super()._decide(agent, data)
        if agent == "leg" and self._n_updates >= 10:
            choices = choices._replace(log_probs=choices.log_probs * np.nan)
        return choices, sample


@pytest.mark.filterwarnings("ignore:.*a gradient was NaN")
def test_gradients_that_stay_nan_end_the_training(tmp_path: Path) -> None:
    """Single ones are left out; three in a row are an error."""
    model = make(NanGradients, team(HASAC), tmp_path, ent_coef=0.1)
    match = "agent 'leg': all gradients of 3 updates in a row were NaN"
    with pytest.raises(NotFiniteError, match=match) as caught:
        model.learn(64, Recorder())
    # Weights count as good when experience was collected with them
    assert model._n_updates == 11 and model.last_good_path in str(caught.value)


@pytest.mark.parametrize("algorithm", [HATD3, HASAC, VDN])
@pytest.mark.filterwarnings("ignore:.*was left out")
def test_weights_that_explode(algorithm: Any, tmp_path: Path) -> None:
    """The error is not PyTorch's own, and the weights of before are kept."""
    rates = lambda progress: 1e-3 if progress > 0.5 else 1e38  # noqa: E731
    model = make(algorithm, team(algorithm), tmp_path, learning_rate=rates)
    with pytest.raises(NotFiniteError, match=r"agent '(arm|leg)'|the critic|the team"):
        model.learn(96, Recorder())
    check_finite(model)
    loaded = algorithm.load(
        model.last_good_path, device="cpu", custom_objects={"learning_rate": 1e-3}
    )
    check_finite(loaded)


def test_nothing_is_saved_before_anything_was_learned(tmp_path: Path) -> None:
    model = make(HATD3, team(HATD3, 1), tmp_path)
    with pytest.raises(ZeroDivisionError):
        model.learn(64)
    assert model.last_good_path is None and not list(tmp_path.iterdir())


def test_statistics_of_normalisation_go_back(tmp_path: Path) -> None:
    """NaN in an observation spoils the statistics, which are those of before in the file."""
    env = make_joint_vec_env(lambda: Faulty(spaces.Box(-1, 1, (2,)), 40, "nan"), 1)
    model = make(HATD3, VecNormalizeTeam(env), tmp_path)
    with pytest.raises(ValueError, match="'leg'"):
        model.learn(64)
    normalizer: Any = model.get_vec_normalize_env()
    saved = VecNormalizeTeam.load_statistics(tmp_path / "last_good.zip")
    for key, statistic in normalizer.obs_rms.items():
        assert np.isfinite(statistic.mean).all() and np.isfinite(statistic.var).all()
        np.testing.assert_array_equal(statistic.mean, saved.obs_rms[key].mean)


class Hanging(RandomTeam):
    """A step takes longer than anybody waits."""

    def __init__(self) -> None:
        super().__init__({"arm": spaces.Box(-1, 1, (2,)), "leg": spaces.Box(-1, 1, (2,))})
        self.left = 30

    def step(self, actions: dict[Any, Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            time.sleep(30)
        return super().step(actions)


def test_a_step_that_takes_too_long(tmp_path: Path) -> None:
    make_env = partial(JointEnv, Hanging())
    env = JointSubprocVecEnv([make_env], 1, start_method="fork", step_timeout=0.4)
    model = make(HATD3, env, tmp_path)
    with pytest.raises(WorkerTimeoutError, match="Environment 0 did not answer") as caught:
        model.learn(64)
    assert model.last_good_path in str(caught.value) and model._n_updates == 9
