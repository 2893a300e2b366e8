"""
Changed copies of saved files: what accidents do to them, and what somebody may do on purpose.

``python -m tests.mutations 10000`` tries so many and prints what came of them.
"""

import hashlib
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.vec_env import VecNormalizeTeam
from sb3_happo.vec_env.normalizer_files import SavedStatistics
from tests.algorithms import random_team, small

#: Seconds and bytes that a load may take
MAX_SECONDS = 10.0
MAX_BYTES = 2 * 10**9


class Kind(NamedTuple):
    """
    One kind of file.

    :param files: Two files of this kind, of the same team
    :param load: Function of the path that loads it
    :param describe: Function of what was loaded that returns numbers and texts
    """

    files: tuple[bytes, bytes]
    load: Callable[[Path], Any]
    describe: Callable[[Any], Any]


class Mutated(NamedTuple):
    """
    Changed file.

    :param name: Name of the change
    :param data: Content
    :param agrees: True if its checksums were made to agree with a changed content, so that it is
        another file rather than a damaged one
    """

    name: str
    data: bytes
    agrees: bool = False


# ---------------------------------------------------------------- files


def make_kinds(folder: Path) -> dict[str, Kind]:
    """
    :param folder: Empty folder
    :return: Files of every kind
    """
    models = []
    for seed in (0, 1):
        env = VecNormalize(random_team(1))
        models.append(small(HAPPO, env, seed=seed, n_steps=16).learn(16))
    files: dict[str, list[bytes]] = {"model": [], "team": [], "agent": [], "vec_normalize": []}
    files["checkpoint"] = []
    for model in models:
        agent = model.policies[model.agents[0]]
        normalizer = model.get_vec_normalize_env()
        assert normalizer is not None
        for name, saver in (
            ("model", model),
            ("team", model.policy),
            ("agent", agent),
            ("vec_normalize", normalizer),
        ):
            path = folder / name
            memory: Any = io.BytesIO()
            saver.save(memory)
            path.write_bytes(memory.getvalue())
            files[name].append(path.read_bytes())
        # Not before the others: environments are reset at a checkpoint
        model.save_checkpoint(folder / "checkpoint")
        files["checkpoint"].append((folder / "checkpoint").read_bytes())
    loaders: dict[str, Callable[[Path], Any]] = {
        "model": HAPPO.load,
        "team": JointPolicy.load,
        "agent": AgentPolicy.load,
        "vec_normalize": VecNormalizeTeam.load_statistics,
        "checkpoint": HAPPO.load_checkpoint,
    }
    describe: dict[str, Callable[[Any], Any]] = {
        "model": _of_model,
        "vec_normalize": _of_statistics,
        "checkpoint": _of_model,
    }
    kinds = {}
    for name, own in files.items():
        kinds[name] = Kind((own[0], own[1]), loaders[name], describe.get(name, _of_policy))
    return kinds


def _of_policy(policy: Any) -> dict[str, bytes]:
    return _of_tensors(policy.state_dict())


def _of_tensors(tensors: dict[str, th.Tensor]) -> dict[str, bytes]:
    return {name: own.cpu().contiguous().numpy().tobytes() for name, own in tensors.items()}


def _of_model(model: HAPPO) -> Any:
    settings = {name: getattr(model, name) for name in ("gamma", "n_steps", "num_timesteps")}
    parameters: dict[str, Any] = model.get_parameters()
    moments = []
    for name, state in parameters.items():
        if name != "policy":
            for own in state["state"].values():
                moments.append(_of_tensors(own))
    spaces = repr((model.observation_space, model.action_space))
    return settings, _of_tensors(parameters["policy"]), moments, spaces


def _of_statistics(statistics: SavedStatistics) -> Any:
    own = {}
    for key, value in statistics.obs_rms.items():
        own[key] = (value.mean.tobytes(), value.var.tobytes(), value.count)
    return own, statistics.clip_obs, statistics.epsilon


# ---------------------------------------------------------------- changes of bytes


def flip_bits(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 100))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def lose_beginning(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    return whole[rng.randrange(1, len(whole)) :]


def zero_block(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(whole)), rng.choice((1, 16, 512, 4096))
    return whole[:start] + bytes(len(whole[start : start + size])) + whole[start + size :]


def insert_bytes(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    return whole[:start] + rng.randbytes(rng.randrange(1, 64)) + whole[start:]


def lose_bytes(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole))
    return whole[:start] + whole[start + rng.randrange(1, 64) :]


def mix_blocks(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another, as after a torn write."""
    cut = rng.randrange(len(whole))
    return whole[:cut] + other[cut:]


def random_text(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.choice((b"", b"PK\x03\x04", b"\x80\x04", whole[:100]))
    return start + rng.randbytes(rng.randrange(2000))


def join(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))] + other


BYTES = (
    *(flip_bits, flip_bits, flip_bits, truncate, lose_beginning, zero_block, insert_bytes),
    *(lose_bytes, mix_blocks, random_text),
)


# ---------------------------------------------------------------- changes of archives


def members_of(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, own in members.items():
            archive.writestr(name, own)
    return memory.getvalue()


def sign(members: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Members with a manifest whose checksums agree with them."""
    described = json.loads(members["manifest.json"])
    described.update(changes)
    for name in described["members"]:
        own = members[name]
        digest = hashlib.sha256(own).hexdigest()
        described["members"][name] = {"size": len(own), "sha256": digest}
    rest = {key: own for key, own in described.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True).encode()
    described["sha256"] = hashlib.sha256(text).hexdigest()
    return members | {"manifest.json": json.dumps(described).encode()}


def swap_member(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    mine, theirs = members_of(whole), members_of(other)
    name = rng.choice([name for name in mine if mine[name] != theirs[name]])
    return archive_of(mine | {name: theirs[name]})


def rename_member(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    mine = members_of(whole)
    name = rng.choice(list(mine))
    new = rng.choice(
        ("../evil.py", "/tmp/evil", "data.pkl", "data", "archive/data.pkl", name + "x")
    )
    return archive_of({new if key == name else key: own for key, own in mine.items()})


def lose_member(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    mine = members_of(whole)
    del mine[rng.choice(list(mine))]
    return archive_of(mine)


def exchange_members(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    mine = members_of(whole)
    first, second = rng.sample(list(mine), 2)
    mine[first], mine[second] = mine[second], mine[first]
    return archive_of(mine)


def zip_bomb(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    """A member that unfolds to 100 times of what it takes; larger claims are in the directory."""
    mine = members_of(whole)
    mine[rng.choice(list(mine))] = bytes(10**6)
    bomb = archive_of(mine, zipfile.ZIP_DEFLATED)
    if rng.random() < 0.5:
        bomb = bomb.replace(struct.pack("<L", 10**6), struct.pack("<L", 3 * 10**9))
    return bomb


def huge_directory(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    """A member whose entry claims gigabytes."""
    mine = members_of(whole)
    name = rng.choice(list(mine))
    size = struct.pack("<L", len(mine[name]))
    return whole.replace(size, struct.pack("<L", rng.choice((2**31, 2**32 - 2))))


ARCHIVES = (
    swap_member,
    rename_member,
    lose_member,
    exchange_members,
    zip_bomb,
    huge_directory,
)


# ---------------------------------------------------------------- changes with checksums that agree

_CLAIMS: tuple[Any, ...] = (
    *(10**9, 10**12, 10**30, -1, 0, 1e308, "1e400", None, [], {}, "x", True, [10**9, 10**9]),
    {"$": "tensor", "name": "nothing"},
    {"$": "class", "name": "os:system"},
    {"$": "function", "name": "builtins:eval"},
    {"$": "object", "class": "subprocess:Popen", "state": {"args": "true"}},
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers of JSON data with their keys."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, own in items:
        yield value, key
        yield from _places(own)


def change_setting(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    members = members_of(whole)
    data = json.loads(members["data.json"])
    holder, key = rng.choice(list(_places(data)))
    holder[key] = rng.choice(_CLAIMS)
    return archive_of(sign(members | {"data.json": json.dumps(data).encode()}))


def huge_layers(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    members = members_of(whole)
    text = members["data.json"].decode()
    units = rng.choice(("[1000000000]", "[100000,100000]", "[1000000,1000000,1000000]"))
    for arch in ('"net_arch":[16]', '"net_arch":[8]', '"net_arch":[64]'):
        text = text.replace(arch, f'"net_arch":{units}')
    for name in ("n_steps", "n_envs", "n_lstm_layers", "lstm_hidden_size"):
        if rng.random() < 0.3:
            text = text.replace(f'"{name}":', f'"{name}":{10**10},"was":')
    return archive_of(sign(members | {"data.json": text.encode()}))


def change_header(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    """Header of the tensors with other shapes, types and offsets."""
    members = members_of(whole)
    packed = members["tensors.safetensors"]
    (size,) = struct.unpack("<Q", packed[:8])
    header = json.loads(packed[8 : 8 + size])
    name = rng.choice(list(header))
    field = rng.choice(("shape", "dtype", "data_offsets"))
    claims: dict[str, Any] = {
        "shape": [10**9, 10**9],
        "dtype": rng.choice(("F64", "I8", "X9")),
        "data_offsets": [0, 10**15],
    }
    header[name][field] = claims[field]
    text = json.dumps(header).encode()
    length = struct.pack("<Q", rng.choice((len(text), len(text), 2**40)))
    changed = length + text + packed[8 + size :]
    return archive_of(sign(members | {"tensors.safetensors": changed}))


def deep_data(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    members = members_of(whole)
    depth = rng.choice((50, 500, 100_000))
    text = '{"attributes":' + "[" * depth + "]" * depth + "}"
    return archive_of(sign(members | {"data.json": text.encode()}))


def newer_version(whole: bytes, other: bytes, rng: random.Random) -> bytes:
    members = members_of(whole)
    change = rng.choice(({"format_version": 99}, {"format": "x"}, {"kind": "checkpoint"}))
    return archive_of(sign(members, **change))


CRAFTED = (change_setting, change_setting, huge_layers, change_header, deep_data, newer_version)


def mutate(kind: Kind, rng: random.Random) -> Mutated:
    """
    :param kind: Kind of file
    :param rng: Generator
    :return: Changed file
    """
    whole, other = kind.files
    group = rng.choices((BYTES, ARCHIVES, CRAFTED), (5, 2, 3))[0]
    change = rng.choice(group)
    data = change(whole, other, rng)
    # The first bytes of two files are alike
    return Mutated(change.__name__, data, group is CRAFTED or data == other)


# ---------------------------------------------------------------- trials


def memory_peak() -> int:
    """
    :return: Largest resident memory of this process so far, in bytes
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_file(kind: Kind, expected: Any, mutated: Mutated, path: Path) -> str:
    """
    :param kind: Kind of file
    :param expected: Content of the file that was not changed
    :param mutated: Changed file
    :param path: Path at which it is put
    :return: Result: "refused", "same" or "another file"; anything else is a fault
    """
    path.write_bytes(mutated.data)
    start = time.perf_counter()
    try:
        loaded = kind.load(path)
    except ValueError as error:
        result = "refused" if str(path) in str(error) else f"unnamed: {error}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    else:
        if mutated.agrees:
            # Its content was changed on purpose
            result = "another file"
        else:
            result = "same" if kind.describe(loaded) == expected else "WRONG"
    seconds = time.perf_counter() - start
    return result if seconds < MAX_SECONDS else f"{result}, after {seconds:.0f} s"


def trials(
    kinds: dict[str, Kind], seed: int, number: int, folder: Path
) -> Iterator[tuple[str, str, str]]:
    """
    :param kinds: Files of every kind
    :param seed: Seed for the changes
    :param number: Number of trials
    :param folder: Folder for the changed files
    :return: Kind, change and result of each trial
    """
    rng = random.Random(seed)
    expected = {}
    for name, kind in kinds.items():
        (folder / name).write_bytes(kind.files[0])
        expected[name] = kind.describe(kind.load(folder / name))
    names = list(kinds)
    for index in range(number):
        name = names[index % len(names)]
        mutated = mutate(kinds[name], rng)
        path = folder / f"{name}.zip"
        yield name, mutated.name, try_file(kinds[name], expected[name], mutated, path)


def main() -> None:
    """Try files and print what came of them."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(Path(folder))
        before, start = memory_peak(), time.perf_counter()
        for kind, change, result in trials(kinds, seed, number, Path(folder)):
            counts[kind, result] += 1
            if result not in ("refused", "same", "another file"):
                print(kind, change, result, flush=True)
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:<14}{result:<14}{count}")
    print(
        f"{number} files in {time.perf_counter() - start:.0f} s; peak of the memory "
        f"{memory_peak() / 1e6:.0f} MB, {before / 1e6:.0f} MB before"
    )


if __name__ == "__main__":
    main()
