"""Joint environments from ids."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym

from sb3_happo.envs.joint_env import as_joint_env
from sb3_happo.suggestions import did_you_mean

EnvWrapper = Callable[[Any], Any]

_MAMUJOCO = "mamujoco"
# The factorisations that Gymnasium-Robotics names, and those with one agent per joint; "|" cannot stand in an id of Gymnasium,
# which gets a "p" instead
_MAMUJOCO_FACTORISATIONS: dict[str, tuple[str | None, ...]] = {
    "Ant": (None, "2x4", "2x4d", "4x2", "8x1"),
    "HalfCheetah": (None, "2x3", "6x1"),
    "Hopper": (None, "3x1"),
    "Humanoid": (None, "9|8", "17x1"),
    "HumanoidStandup": (None, "9|8", "17x1"),
    "InvertedDoublePendulum": (None,),
    "InvertedPendulum": (None,),
    "Pusher": (None, "3p"),
    "Reacher": (None, "2x1"),
    "Swimmer": (None, "2x1"),
    "Walker2d": (None, "2x3", "6x1"),
    "CoupledHalfCheetah": (None, "1p1"),
    "ManySegmentAnt": ("2x3", "6x1", "10x2"),
    "ManySegmentSwimmer": ("2x3", "6x1", "10x2"),
}
# Of these, the ones that Gymnasium-Robotics does not name
_ONE_AGENT_PER_JOINT = {
    "Ant": "8x1",
    "Humanoid": "17x1",
    "HumanoidStandup": "17x1",
    "Walker2d": "6x1",
}
_MPE_CONTINUOUS = re.compile(r"(mpe2/\w+)_continuous(_v\d+)")
_MANY_SEGMENTS = re.compile(rf"{_MAMUJOCO}/(ManySegmentAnt|ManySegmentSwimmer)-(\d+x\d+)-v1")

# Simulators that run many environments at a time by themselves, of which `make_joint_vec_env` makes a `VecEnv`
VECTORISED_FAMILIES = ("envpool", "vmas")

# What to install for ids of well-known packages
_INSTALL = {
    "mpe2": "mpe2",
    "mamujoco": "gymnasium-robotics mujoco",
    "pettingzoo.atari": "pettingzoo[atari]",
    "pettingzoo.butterfly": "pettingzoo[butterfly]",
    "pettingzoo.classic": "pettingzoo[classic]",
    "pettingzoo.sisl": "pettingzoo[sisl]",
    "magent2.environments": "magent2",
    "lbforaging": "lbforaging",
    "rware": "rware",
}


def register_mamujoco() -> None:
    """Register multi-agent MuJoCo with Gymnasium, as ``"mamujoco/HalfCheetah-2x3-v1"`` and the like; imports no simulator."""
    for scenario, factorisations in _MAMUJOCO_FACTORISATIONS.items():
        for agent_conf in factorisations:
            name = scenario if agent_conf is None else f"{scenario}-{agent_conf.replace('|', 'p')}"
            _register_mamujoco(f"{_MAMUJOCO}/{name}-v1", scenario, agent_conf)


def _register_mamujoco(id: str, scenario: str, agent_conf: str | None) -> None:
    if id not in gym.registry:
        gym.register(
            id,
            entry_point="sb3_happo.envs.make:make_joint_mamujoco",
            order_enforce=False,  # the time limit is set inside, and per-step wrappers cost
            disable_env_checker=True,
            kwargs={"scenario": scenario, "agent_conf": agent_conf},
        )


def make_mamujoco(scenario: str, agent_conf: str | None, **env_kwargs: Any) -> Any:
    """
    A PettingZoo env of multi-agent MuJoCo.

    :param scenario: The robot, for example "HalfCheetah"
    :param agent_conf: Its factorisation, for example "2x3", None for a single agent
    :param env_kwargs: ``agent_obsk``, ``agent_factorization``, ``render_mode`` and the other arguments of
        Gymnasium-Robotics' ``mamujoco_v1.parallel_env``, and of the single-agent env inside
    :return: The environment
    :raises ImportError: If Gymnasium-Robotics or MuJoCo is not installed
    """
    try:
        from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise _missing(f"{_MAMUJOCO}/{scenario}", _MAMUJOCO, error) from error
    if agent_conf is not None and agent_conf == _ONE_AGENT_PER_JOINT.get(scenario):
        env_kwargs.setdefault("agent_factorization", one_agent_per_joint(scenario))
    elif agent_conf is None and env_kwargs.get("agent_factorization") is not None:
        agent_conf = "custom"  # any name: with none, `mamujoco_v1` makes a single agent whatever the factorisation
    # Gymnasium's checker would look at every step of the single-agent env inside
    env_kwargs.setdefault("disable_env_checker", True)
    env = mamujoco_v1.parallel_env(scenario, agent_conf, **env_kwargs)
    # Which it keeps to itself
    env.render_mode = env_kwargs.get("render_mode")
    env.metadata = env.metadata | {"render_fps": env.single_agent_env.metadata["render_fps"]}
    return env


def one_agent_per_joint(scenario: str) -> dict[str, Any]:
    """
    The finest factorisation of a robot: every joint is an agent, in the order in which Gymnasium-Robotics lists the joints.

    :param scenario: The robot, for example "Humanoid"
    :return: ``agent_factorization`` of multi-agent MuJoCo: its "partition", "edges" and "globals"
    """
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

    (joints,), edges, global_nodes = get_parts_and_edges(scenario, None)
    return {"partition": [(joint,) for joint in joints], "edges": edges, "globals": global_nodes}


def make_joint_mamujoco(joint_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> gym.Env:
    """
    A joint environment of multi-agent MuJoCo, as ``gymnasium.make`` makes it.

    :param joint_kwargs: Arguments of :class:`~sb3_happo.envs.JointEnv`
    :param kwargs: Arguments of :func:`make_mamujoco`
    :return: The environment
    """
    return as_joint_env(make_mamujoco(**kwargs), **(joint_kwargs or {}))


def is_vectorised(id: str) -> bool:
    """
    :param id: Id of an environment
    :return: Whether it is of a simulator that runs many environments at a time by itself
    """
    return id.partition("/")[0] in VECTORISED_FAMILIES


def make_joint_env(
    id: str,
    wrappers: Iterable[EnvWrapper] | None = None,
    joint_kwargs: dict[str, Any] | None = None,
    **env_kwargs: Any,
) -> gym.Env:
    """
    Make a joint environment from an id.

    * ``"<package>/<module>"`` is that module's ``parallel_env(**env_kwargs)``, or its ``env(**env_kwargs)`` if it has only
      that: ``"mpe2/simple_spread_v3"``, ``"pettingzoo.sisl/multiwalker_v9"``, your own ``"my_pkg/my_env_v0"``.
    * ``"mpe2/simple_spread_continuous_v3"`` is ``"mpe2/simple_spread_v3"`` with ``continuous_actions=True``, and so on.
    * ``"mamujoco/HalfCheetah-2x3-v1"`` and the like are multi-agent MuJoCo; ``agent_obsk`` and the rest are keyword
      arguments.
    * Any other id that Gymnasium knows: ``"CartPole-v1"`` gives a team of one,
      ``"lbforaging:Foraging-8x8-2p-2f-coop-v3"`` imports ``lbforaging`` first.

    :param id: The id
    :param wrappers: Callables ``env -> env``, such as SuperSuit's with their arguments bound, applied in this order before
        the env is joined
    :param joint_kwargs: Arguments of :class:`~sb3_happo.envs.JointEnv`
    :param env_kwargs: Arguments of the env itself, for example ``render_mode``
    :return: The environment
    :raises ValueError: If the id does not resolve, in which case the error names the nearest ones; or if it is one that only
        :func:`~sb3_happo.make_joint_vec_env` can make
    :raises ImportError: If something that the env needs is not installed
    """
    return as_joint_env(_wrap(make_env(id, **env_kwargs), wrappers), **(joint_kwargs or {}))


def make_env(id: str, **env_kwargs: Any) -> Any:
    """
    Make an environment from an id, without joining it.

    :param id: An id of :func:`make_joint_env`
    :param env_kwargs: Arguments of the env
    :return: A PettingZoo or Gymnasium env
    :raises ValueError: If the id does not resolve; the error names the nearest ones
    :raises ImportError: If something that the env needs is not installed
    """
    if is_vectorised(id):
        raise ValueError(
            f"The environment {id!r} exists as a VecEnv only; make it with make_joint_vec_env({id!r}, n_envs), "
            "or pass the id to the algorithm."
        )
    continuous = _MPE_CONTINUOUS.fullmatch(id)
    if continuous:
        if not env_kwargs.setdefault("continuous_actions", True):
            raise ValueError(
                f"{id} has continuous actions; with discrete ones it is {continuous[1]}{continuous[2]}."
            )
        return _call(_env_function(id, continuous[1] + continuous[2]), **env_kwargs)
    if id.startswith(_MAMUJOCO + "/"):
        id = id.replace("|", "p")
        many_segments = _MANY_SEGMENTS.fullmatch(id)
        if many_segments:
            _register_mamujoco(id, many_segments[1], many_segments[2])
    spec = _gymnasium_spec(id)
    if spec is None:
        return _call(_env_function(id, id), **env_kwargs)
    if spec.namespace == _MAMUJOCO:
        return _call(make_mamujoco, **spec.kwargs, **env_kwargs)
    return _call(gym.make, spec, disable_env_checker=True, **env_kwargs)


def _wrap(env: Any, wrappers: Iterable[EnvWrapper] | None) -> Any:
    for wrapper in wrappers or ():
        env = wrapper(env)
    return env


def _gymnasium_spec(id: str) -> Any:
    module, _, name = id.rpartition(":")
    if module:
        _import(id, module, module)
    try:
        return gym.spec(name)
    except gym.error.Error:
        return None


def _import(id: str, package: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise _unresolved(id, package) from error
        raise _missing(id, package, error) from error
    except ImportError as error:
        raise _missing(id, package, error) from error


def _env_function(id: str, path: str) -> Callable[..., Any]:
    package, _, module = path.rpartition("/")
    if not package or not module:
        raise _unresolved(id, package)
    name = path.replace("/", ".")
    found = _import(id, package, name)
    function = getattr(found, "parallel_env", None) or getattr(found, "env", None)
    if function is None:
        raise ValueError(
            f"The module {name} of the id {id!r} has neither `parallel_env` nor `env`; define one that returns the env."
            f"{_nearest_ids(id, _module_ids(package))}"
        )
    return function


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Of a wrong argument, the nearest right one of the functions that it was handed on to."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        wrong = re.match(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if wrong is None or wrong[2] not in kwargs:
            raise
        # Gymnasium raises another error from that of the environment
        tracebacks = [
            error.__traceback__,
            *([error.__cause__.__traceback__] if error.__cause__ else []),
        ]
        frames = [frame for raised in tracebacks for frame, _ in traceback.walk_tb(raised)]
        names = {
            name
            for frame in frames
            for name in frame.f_code.co_varnames[: frame.f_code.co_argcount]
        }
        # The last one, which refused it, was not entered
        for value in (*frames[-1].f_locals.values(), *frames[-1].f_globals.values()):
            if getattr(value, "__qualname__", "") == wrong[1].removesuffix(".__init__"):
                names |= inspect.signature(value).parameters.keys()
        hint = did_you_mean(wrong[2], sorted(names - {"self"}))
        raise TypeError(f"{error}. {hint}".rstrip()) from error


def _nearest_ids(id: str, ids: Sequence[str]) -> str:
    same = [other for other in ids if other.endswith("/" + id)]
    if same:
        return f" Did you mean {', '.join(map(repr, same))}?"
    return f" {did_you_mean(id, ids, n=3)}".rstrip()


def _unresolved(id: str, package: str) -> ValueError:
    own = _module_ids(package)
    others = [other for family in _INSTALL if family != package for other in _module_ids(family)]
    hint = _nearest_ids(id, [*gym.registry, *own, *others, *_vectorised_ids()])
    if not own and package != _MAMUJOCO:
        install = (
            f"pip install {_INSTALL[package]}"
            if package in _INSTALL
            else "install the package that has it"
        )
        hint += (
            f" If it is not installed, {install}, or put it on the Python path." if package else ""
        )
    return ValueError(
        f"The environment id {id!r} does not resolve: neither Gymnasium knows it, nor is there such a module "
        f"('<package>/<module>' means that module's parallel_env).{hint}"
    )


def _module_ids(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package.replace("/", ".")) if package else None
    except (ImportError, ValueError):
        return []
    locations = spec.submodule_search_locations if spec is not None else None
    ids = [f"{package}/{module.name}" for module in pkgutil.iter_modules(locations or [])]
    if package == "mpe2":
        ids += [re.sub(r"(_v\d+)$", r"_continuous\1", id) for id in ids if re.search(r"_v\d+$", id)]
    return ids


def _vectorised_ids() -> list[str]:
    robots = [id.removeprefix(_MAMUJOCO) for id in gym.registry if id.startswith(_MAMUJOCO + "/")]
    vmas = importlib.util.find_spec("vmas")  # which is not imported for it, with PyTorch
    folders = [
        str(Path(folder) / "scenarios")
        for folder in (vmas and vmas.submodule_search_locations) or ()
    ]
    return [f"envpool{robot}" for robot in robots] + [
        f"vmas/{module.name}" for module in pkgutil.iter_modules(folders)
    ]


def _missing(id: str, package: str, error: ImportError) -> ImportError:
    install = _INSTALL.get(package, error.name)
    return ImportError(
        f"The environment {id!r} needs something that is not installed ({error}): pip install {install}",
        name=error.name,
    )
