"""
Files that were made to run code: every loader refuses them, and nothing is run. Each would make a
folder, the mark of its success.
"""

import base64
import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, HATRPO
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.vec_env import VecNormalizeTeam
from tests.algorithms import random_team, small
from tests.mutations import archive_of, members_of, sign


class Payload:
    """
    Object whose unpickling makes a folder.

    :param mark: Path of the folder
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def model() -> HAPPO:
    return small(HAPPO, VecNormalize(random_team(1)), seed=0)


def saved(owner: Any) -> bytes:
    memory = io.BytesIO()
    owner.save(memory)
    return memory.getvalue()


def old_model(model: HAPPO) -> dict[str, bytes]:
    """Members of a model's file as Stable-Baselines3 writes it."""
    memory = io.BytesIO()
    BaseAlgorithm.save(model, memory)
    return members_of(memory.getvalue())


def torch_file(content: Any) -> bytes:
    memory = io.BytesIO()
    th.save(content, memory)
    return memory.getvalue()


# Each function returns the content of a file that would make the folder `mark`


def pickle_in_an_old_model(model: HAPPO, mark: Path) -> bytes:
    members = old_model(model)
    data = json.loads(members["data"])
    text = cloudpickle.dumps(Payload(mark))
    for name in ("policy_class", "learning_rate", "observation_space"):
        data[name] = {":type:": "x", ":serialized:": base64.b64encode(text).decode()}
    return archive_of(members | {"data": json.dumps(data).encode()})


def pickle_in_old_weights(model: HAPPO, mark: Path) -> bytes:
    return archive_of(old_model(model) | {"policy.pth": torch_file(Payload(mark))})


def pickle_in_old_optimizers(model: HAPPO, mark: Path) -> bytes:
    own = torch_file({"state": Payload(mark)})
    return archive_of(old_model(model) | {"policy.critic.optimizer.pth": own})


def pickle_in_old_variables(model: HAPPO, mark: Path) -> bytes:
    return archive_of(old_model(model) | {"pytorch_variables.pth": torch_file(Payload(mark))})


def old_policy(owner: Any, mark: Path) -> bytes:
    memory: Any = io.BytesIO()
    BasePolicy.save(owner, memory)
    content = th.load(io.BytesIO(memory.getvalue()), weights_only=False)
    content["data"]["activation_fn"] = Payload(mark)
    return torch_file(content)


def pickle_in_an_old_team(model: HAPPO, mark: Path) -> bytes:
    return old_policy(model.policy, mark)


def pickle_in_an_old_agent(model: HAPPO, mark: Path) -> bytes:
    return old_policy(model.policies[model.agents[0]], mark)


def bare_pickle(model: HAPPO, mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def old_protocol(model: HAPPO, mark: Path) -> bytes:
    return pickle.dumps(Payload(mark), 0)


def pickle_named_statistics(model: HAPPO, mark: Path) -> bytes:
    normalizer: Any = model.get_vec_normalize_env()
    memory = pickle.dumps(normalizer)
    # The payload comes after the class that the file is said to hold
    return memory[:-1] + pickle.dumps(Payload(mark))[2:]


def pickle_as_tensors(model: HAPPO, mark: Path) -> bytes:
    members = members_of(saved(model))
    return archive_of(sign(members | {"tensors.safetensors": pickle.dumps(Payload(mark))}))


def torch_as_tensors(model: HAPPO, mark: Path) -> bytes:
    members = members_of(saved(model))
    return archive_of(sign(members | {"tensors.safetensors": torch_file(Payload(mark))}))


def pickle_as_data(model: HAPPO, mark: Path) -> bytes:
    members = members_of(saved(model))
    return archive_of(sign(members | {"data.json": pickle.dumps(Payload(mark))}))


def pickle_as_manifest(model: HAPPO, mark: Path) -> bytes:
    return archive_of(members_of(saved(model)) | {"manifest.json": pickle.dumps(Payload(mark))})


def pickle_beside(model: HAPPO, mark: Path) -> bytes:
    more = {"data": b"{}", "data.pkl": pickle.dumps(Payload(mark))}
    return archive_of(members_of(saved(model)) | more)


def pickle_before(model: HAPPO, mark: Path) -> bytes:
    """A pickle and an archive in one file."""
    return pickle.dumps(Payload(mark)) + archive_of({"data.pkl": b""})


def changed(model: HAPPO, change: Callable[[dict[str, Any]], None]) -> bytes:
    members = members_of(saved(model))
    data = json.loads(members["data.json"])
    change(data["attributes"])
    return archive_of(sign(members | {"data.json": json.dumps(data).encode()}))


def function_of_python(model: HAPPO, mark: Path) -> bytes:
    call = {"$": "function", "name": "os:mkdir"}
    partial = {"$": "partial", "function": call, "args": [str(mark)], "keywords": {}}
    return changed(model, lambda own: own.update(learning_rate=partial))


def class_of_python(model: HAPPO, mark: Path) -> bytes:
    popen = {"$": "class", "name": "subprocess:Popen"}
    kwargs: dict[str, Any] = {"activation_fn": popen, "features_extractor_class": popen}
    kwargs["features_extractor_kwargs"] = {"args": ["mkdir", str(mark)]}
    return changed(model, lambda own: own.update(policy_kwargs=kwargs, policy_class=popen))


def object_of_python(model: HAPPO, mark: Path) -> bytes:
    own = {"$": "object", "class": "subprocess:Popen", "state": {"args": ["mkdir", str(mark)]}}
    return changed(model, lambda attributes: attributes.update(action_noise=own))


def module_beside(model: HAPPO, mark: Path) -> bytes:
    """A module that is found, and runs code when it is imported."""
    Path("evil_module.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    kwargs = {"features_extractor_class": {"$": "class", "name": "evil_module:Evil"}}
    return changed(model, lambda own: own.update(policy_kwargs=kwargs))


def expression_as_setting(model: HAPPO, mark: Path) -> bytes:
    text = f"__import__('os').mkdir({str(mark)!r})"
    return changed(model, lambda own: own.update(gamma=text, learning_rate=text, n_steps=text))


def names_outside(model: HAPPO, mark: Path) -> bytes:
    members = members_of(saved(model))
    return archive_of(members | {f"../../../../../{mark}/x": b"", str(mark / "y"): b""})


def symbolic_link(model: HAPPO, mark: Path) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, own in members_of(saved(model)).items():
            info = zipfile.ZipInfo(name)
            content = own
            if name == "data.json":
                info.external_attr = 0o120777 << 16
                content = str(mark).encode()
            archive.writestr(info, content)
    return memory.getvalue()


FILES = (
    *(pickle_in_an_old_model, pickle_in_old_weights, pickle_in_old_optimizers),
    *(pickle_in_old_variables, pickle_in_an_old_team, pickle_in_an_old_agent, bare_pickle),
    *(old_protocol, pickle_named_statistics, pickle_as_tensors, torch_as_tensors, pickle_as_data),
    *(pickle_as_manifest, pickle_beside, pickle_before, function_of_python, class_of_python),
    *(object_of_python, module_beside, expression_as_setting, names_outside, symbolic_link),
)


@pytest.mark.parametrize("make", FILES)
def test_nothing_is_run(
    make: Callable[[HAPPO, Path], bytes],
    model: HAPPO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "mark"
    content = make(model, mark)
    loaders: tuple[Callable[[Any], Any], ...] = (
        HAPPO.load,
        HATRPO.load,
        lambda location: HAPPO.load(location, env=random_team(1), check_class=False),
        JointPolicy.load,
        AgentPolicy.load,
    )
    path = tmp_path / "file.zip"
    path.write_bytes(content)
    for load in loaders:
        for location in (path, str(path), io.BytesIO(content)):
            with pytest.raises(ValueError) as info:
                load(location)
            if not isinstance(location, io.BytesIO):
                assert str(path) in str(info.value)
            assert not mark.exists()
    # The statistics of a model, and the weights of an older one, may be whole
    for load in (
        VecNormalizeTeam.load_statistics,
        lambda location: VecNormalizeTeam.load(location, random_team(1)),
        small(HAPPO, random_team(1)).set_parameters,
    ):
        with contextlib.suppress(ValueError):
            load(str(path))
        assert not mark.exists()


def test_the_payload_works(tmp_path: Path) -> None:
    """Without the refusals the folder would be made."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()
