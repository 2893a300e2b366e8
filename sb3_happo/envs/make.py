"""Joint environments from ids."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym

from sb3_happo.envs.games import GAMES, NAMESPACE, game_class
from sb3_happo.envs.joint_env import as_joint_env
from sb3_happo.suggestions import did_you_mean

EnvWrapper = Callable[[Any], Any]

_MAMUJOCO = "mamujoco"
# Factorisations that Gymnasium-Robotics names, and those with one agent per joint. Ids of Gymnasium
# have "p" in the place of "|", which they may not contain
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
# Those of them that Gymnasium-Robotics does not name
_ONE_AGENT_PER_JOINT = {
    "Ant": "8x1",
    "Humanoid": "17x1",
    "HumanoidStandup": "17x1",
    "Walker2d": "6x1",
}
_MPE_CONTINUOUS = re.compile(r"(mpe2/\w+)_continuous(_v\d+)")
_MANY_SEGMENTS = re.compile(rf"{_MAMUJOCO}/(ManySegmentAnt|ManySegmentSwimmer)-(\d+x\d+)-v1")
_UNKNOWN_ARGUMENT = re.compile(r"[\w.]+\(\) got an unexpected keyword argument '(\w+)'")

#: Simulators of many environments at a time, of which `make_joint_vec_env` makes a `VecEnv`
VECTORISED_FAMILIES = ("envpool", "vmas")

# Packages that are now others: new package of the id, and what to install
_MOVED = {
    "pettingzoo.mpe": ("mpe2", "mpe2"),
    "pettingzoo.magent": ("magent2.environments", "magent2"),
    "multiagent": ("mpe2", "mpe2"),
    "mpe": ("mpe2", "mpe2"),
}

# Packages to install for ids of well-known families
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


# ---------------------------------------------------------------- multi-agent MuJoCo


def register_mamujoco() -> None:
    """
    Register multi-agent MuJoCo with Gymnasium, as ``"mamujoco/HalfCheetah-2x3-v1"`` and the like.
    No simulator is imported.
    """
    for scenario, factorisations in _MAMUJOCO_FACTORISATIONS.items():
        for agent_conf in factorisations:
            name = scenario if agent_conf is None else f"{scenario}-{agent_conf.replace('|', 'p')}"
            _register_mamujoco(f"{_MAMUJOCO}/{name}-v1", scenario, agent_conf)


def _register_mamujoco(id: str, scenario: str, agent_conf: str | None) -> None:
    if id not in gym.registry:
        gym.register(
            id,
            entry_point="sb3_happo.envs.make:make_joint_mamujoco",
            order_enforce=False,  # the env inside has its time limit, and wrappers cost time
            disable_env_checker=True,
            kwargs={"scenario": scenario, "agent_conf": agent_conf},
        )


def make_mamujoco(scenario: str, agent_conf: str | None, **env_kwargs: Any) -> Any:
    """
    Make a PettingZoo env of multi-agent MuJoCo.

    :param scenario: Robot, for example "HalfCheetah"
    :param agent_conf: Factorisation, for example "2x3"; None for a single agent
    :param env_kwargs: ``agent_obsk``, ``agent_factorization``, ``render_mode`` and the other
        arguments of Gymnasium-Robotics' ``mamujoco_v1.parallel_env``, and of the single-agent env
        inside
    :return: Environment
    :raises ImportError: If Gymnasium-Robotics or MuJoCo is not installed
    :raises TypeError: If an argument is unknown
    """
    try:
        from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise _missing(f"{_MAMUJOCO}/{scenario}", _MAMUJOCO, error) from error
    if agent_conf is not None and agent_conf == _ONE_AGENT_PER_JOINT.get(scenario):
        env_kwargs.setdefault("agent_factorization", one_agent_per_joint(scenario))
    elif agent_conf is None and env_kwargs.get("agent_factorization") is not None:
        # Any name: without one, `mamujoco_v1` ignores the factorisation and makes a single agent
        agent_conf = "custom"
    # Gymnasium's checker would check every step of the single-agent env inside
    env_kwargs.setdefault("disable_env_checker", True)
    make = partial(mamujoco_v1.parallel_env, scenario, agent_conf)
    env = _call(make, env_kwargs, lambda: [mamujoco_v1.parallel_env])
    # Multi-agent MuJoCo does not set these attributes
    env.render_mode = env_kwargs.get("render_mode")
    env.metadata = env.metadata | {"render_fps": env.single_agent_env.metadata["render_fps"]}
    return env


def one_agent_per_joint(scenario: str) -> dict[str, Any]:
    """
    The finest factorisation of a robot: every joint is an agent, in the order in which
    Gymnasium-Robotics lists the joints.

    :param scenario: Robot, for example "Humanoid"
    :return: ``agent_factorization`` of multi-agent MuJoCo, with "partition", "edges" and "globals"
    """
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

    (joints,), edges, global_nodes = get_parts_and_edges(scenario, None)
    return {"partition": [(joint,) for joint in joints], "edges": edges, "globals": global_nodes}


def make_joint_mamujoco(joint_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> gym.Env:
    """
    Make a joint environment of multi-agent MuJoCo, as ``gymnasium.make`` does.

    :param joint_kwargs: Keyword arguments of :class:`~sb3_happo.envs.JointEnv`
    :param kwargs: Keyword arguments of :func:`make_mamujoco`
    :return: Joint environment
    """
    return as_joint_env(make_mamujoco(**kwargs), **(joint_kwargs or {}))


# ---------------------------------------------------------------- games with known answers

_GAME_ENTRY_POINT = "sb3_happo.envs.make:make_joint_game"


def register_games() -> None:
    """Register the games of :mod:`sb3_happo.envs.games` with Gymnasium, as ``"games/climbing"``."""
    for name in GAMES:
        id = f"{NAMESPACE}/{name}"
        if id not in gym.registry:
            gym.register(
                id,
                entry_point=_GAME_ENTRY_POINT,
                order_enforce=False,  # wrappers cost time
                disable_env_checker=True,
                kwargs={"game": name},
            )


def make_game(game: str, **env_kwargs: Any) -> Any:
    """
    Make a game with a known answer.

    :param game: Name of the game, the part of its id after the slash
    :param env_kwargs: Keyword arguments of its class
    :return: PettingZoo env
    :raises TypeError: If an argument is unknown; the error names the nearest one
    """
    make = game_class(game)
    return _call(make, env_kwargs, lambda: [make])


def make_joint_game(joint_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> gym.Env:
    """
    Make a joint environment of a game, as ``gymnasium.make`` does.

    :param joint_kwargs: Keyword arguments of :class:`~sb3_happo.envs.JointEnv`
    :param kwargs: Keyword arguments of :func:`make_game`
    :return: Joint environment
    """
    return as_joint_env(make_game(**kwargs), **(joint_kwargs or {}))


# ---------------------------------------------------------------- any id


def is_vectorised(id: str) -> bool:
    """
    :param id: Id of an environment
    :return: Whether it belongs to a simulator of many environments at a time
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

    * ``"<package>/<module>"`` is that module's ``parallel_env(**env_kwargs)``, or its
      ``env(**env_kwargs)`` if it has only that: ``"mpe2/simple_spread_v3"``,
      ``"pettingzoo.sisl/multiwalker_v9"``, your own ``"my_pkg/my_env_v0"``.
    * ``"mpe2/simple_spread_continuous_v3"`` is ``"mpe2/simple_spread_v3"`` with
      ``continuous_actions=True``, and so on.
    * ``"mamujoco/HalfCheetah-2x3-v1"`` and the like are multi-agent MuJoCo; ``agent_obsk`` and the
      rest are keyword arguments.
    * ``"games/climbing"`` and the like are the games of :mod:`sb3_happo.envs.games`.
    * Any other id that Gymnasium knows: ``"CartPole-v1"`` gives a team of one,
      ``"lbforaging:Foraging-8x8-2p-2f-coop-v3"`` imports ``lbforaging`` first.

    :param id: Id
    :param wrappers: Callables ``env -> env``, such as SuperSuit's with their arguments bound,
        applied in this order before the env is joined
    :param joint_kwargs: Keyword arguments of :class:`~sb3_happo.envs.JointEnv`
    :param env_kwargs: Keyword arguments of the env itself, for example ``render_mode``
    :return: Joint environment
    :raises ValueError: If the id does not resolve, in which case the error names the nearest ones;
        or if only :func:`~sb3_happo.make_joint_vec_env` can make it
    :raises ImportError: If something that the env needs is not installed
    :raises TypeError: If the env does not know an argument
    """
    env = make_env(id, **env_kwargs)
    for wrapper in wrappers or ():
        env = wrapper(env)
    return as_joint_env(env, **(joint_kwargs or {}))


def make_env(id: str, **env_kwargs: Any) -> Any:
    """
    Make an environment from an id, without joining it.

    :param id: Id, as in :func:`make_joint_env`
    :param env_kwargs: Keyword arguments of the env
    :return: PettingZoo or Gymnasium env
    :raises ValueError: If the id does not resolve; the error names the nearest ones
    :raises ImportError: If something that the env needs is not installed
    :raises TypeError: If the env does not know an argument; the error names the nearest one
    """
    if is_vectorised(id):
        raise ValueError(
            f"The environment {id!r} exists as a VecEnv only; make it with "
            f"make_joint_vec_env({id!r}, n_envs), or pass the id to the algorithm."
        )
    continuous = _MPE_CONTINUOUS.fullmatch(id)
    if continuous:
        path = continuous[1] + continuous[2]
        if not env_kwargs.setdefault("continuous_actions", True):
            raise ValueError(f"{id} has continuous actions; with discrete ones it is {path}.")
        return _make_from_module(id, path, env_kwargs)
    if id.startswith(_MAMUJOCO + "/"):
        id = id.replace("|", "p")
        many_segments = _MANY_SEGMENTS.fullmatch(id)
        if many_segments:
            _register_mamujoco(id, many_segments[1], many_segments[2])
    spec = _gymnasium_spec(id)
    if spec is None:
        return _make_from_module(id, id, env_kwargs)
    if spec.namespace == _MAMUJOCO:
        return make_mamujoco(**spec.kwargs, **env_kwargs)
    if spec.entry_point == _GAME_ENTRY_POINT:
        return make_game(**spec.kwargs, **env_kwargs)
    make = partial(gym.make, spec, disable_env_checker=True)
    return _call(
        make, env_kwargs, lambda: [gym.envs.registration.load_env_creator(spec.entry_point)]
    )


def _gymnasium_spec(id: str) -> Any:
    """Specification of an id that Gymnasium knows; None for other ids."""
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
        of_id = error.name is not None and (module + ".").startswith(error.name + ".")
        if of_id and package.replace("/", ".") not in _MOVED:
            raise _unresolved(id, package) from error
        raise _missing(id, package, error) from error
    except ImportError as error:
        raise _missing(id, package, error) from error


def _make_from_module(id: str, path: str, env_kwargs: dict[str, Any]) -> Any:
    """
    :param id: Id, for errors
    :param path: ``"<package>/<module>"``
    :param env_kwargs: Keyword arguments of the env
    :return: Environment that the module's function returns
    """
    package, _, module_name = path.rpartition("/")
    if not package or not module_name:
        raise _unresolved(id, package)
    name = path.replace("/", ".")
    module = _import(id, package, name)
    function = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    if function is None:
        raise ValueError(
            f"The module {name} of the id {id!r} has neither `parallel_env` nor `env`; define one "
            f"that returns the env.{_nearest_ids(id, _module_ids(package))}"
        )
    # In PettingZoo `parallel_env` takes any keyword, and the class `raw_env` has the signature
    raw_env = getattr(module, "raw_env", function)
    return _call(function, env_kwargs, lambda: [function, raw_env])


def _call(
    make: Callable[..., Any],
    env_kwargs: dict[str, Any],
    documented: Callable[[], list[Callable[..., Any]]],
) -> Any:
    """
    Make an environment; an unknown argument raises an error that names the nearest one.

    :param make: Function that returns the environment
    :param env_kwargs: Keyword arguments of the function
    :param documented: Returns the functions among whose arguments the nearest one is searched
    :return: Environment
    :raises TypeError: If an argument is unknown
    """
    try:
        return make(**env_kwargs)
    except TypeError as error:
        unknown = _UNKNOWN_ARGUMENT.match(str(error))
        if unknown is None or unknown[1] not in env_kwargs:
            raise
        known: set[str] = set()
        for function in documented():
            known |= inspect.signature(function).parameters.keys()
        hint = did_you_mean(unknown[1], sorted(known))
        raise TypeError(f"{error}. {hint}".rstrip()) from error


# ---------------------------------------------------------------- ids in error messages


def _nearest_ids(id: str, ids: Sequence[str]) -> str:
    """Sentence that names the nearest ids, with a space before it; empty if there are none."""
    same_name = [other for other in ids if other.endswith("/" + id)]
    if same_name:
        return f" Did you mean {', '.join(map(repr, same_name))}?"
    return f" {did_you_mean(id, ids, n=3)}".rstrip()


def _unresolved(id: str, package: str) -> ValueError:
    own = _module_ids(package)
    ids = [*gym.registry, *own]
    for family in _INSTALL:
        if family != package:
            ids += _module_ids(family)
    hint = _nearest_ids(id, [*ids, *_vectorised_ids()])
    if package and not own and package not in (_MAMUJOCO, NAMESPACE):
        install = "install the package that has it"
        if package in _INSTALL:
            install = f"pip install {_INSTALL[package]}"
        hint += f" If it is not installed, {install}, or put it on the Python path."
    return ValueError(
        f"The environment id {id!r} does not resolve: Gymnasium does not know it, and there is no "
        f"such module ('<package>/<module>' means that module's parallel_env).{hint}"
    )


def _module_ids(package: str) -> list[str]:
    """Ids of the modules of a package; empty if it is not installed."""
    try:
        spec = importlib.util.find_spec(package.replace("/", ".")) if package else None
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    modules = pkgutil.iter_modules(spec.submodule_search_locations or [])
    ids = [f"{package}/{module.name}" for module in modules]
    if package == "mpe2":
        versioned = [id for id in ids if re.search(r"_v\d+$", id)]
        ids += [re.sub(r"(_v\d+)$", r"_continuous\1", id) for id in versioned]
    return ids


def _vectorised_ids() -> list[str]:
    """Ids of the simulators of many environments at a time."""
    ids = []
    for id in gym.registry:
        if id.startswith(_MAMUJOCO + "/"):
            ids.append(f"envpool{id.removeprefix(_MAMUJOCO)}")
    # Found without importing VMAS, which would import PyTorch
    vmas = importlib.util.find_spec("vmas")
    locations = (vmas.submodule_search_locations if vmas is not None else None) or []
    folders = [str(Path(folder) / "scenarios") for folder in locations]
    return ids + [f"vmas/{module.name}" for module in pkgutil.iter_modules(folders)]


def _missing(id: str, package: str, error: ImportError) -> ImportError:
    package = package.replace("/", ".")
    if package in _MOVED:
        new, install = _MOVED[package]
        moved = f"{new}/{id.rpartition('/')[2]}"
        known = _module_ids(new)
        hint = "" if moved in known else _nearest_ids(moved, known)
        return ImportError(
            f"The environment {id!r} has moved to another package: pip install {install}, and use "
            f"the id {moved!r}.{hint}",
            name=error.name,
        )
    needed = _INSTALL.get(package) or error.name
    if needed is None:
        return ImportError(f"The environment {id!r} cannot be imported: {error}", name=error.name)
    return ImportError(
        f"The environment {id!r} needs something that is not installed ({error}): "
        f"pip install {needed}",
        name=error.name,
    )
