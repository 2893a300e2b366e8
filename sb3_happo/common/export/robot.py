"""
One exported agent: ONNX Runtime and NumPy alone.

    agent = Agent(folder)
    action = agent.act(observation)   # and the action mask, where card.json lists one
    agent.reset()                     # at the start of an episode, for a recurrent policy

`python run.py` checks the files of its folder and the actions of examples.npz.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import onnxruntime


class Agent:
    def __init__(self, folder: str | pathlib.Path = pathlib.Path(__file__).parent) -> None:
        self.folder = pathlib.Path(folder)
        self.card = json.loads((self.folder / "card.json").read_text(encoding="utf-8"))
        for name, checksum in self.card["sha256"].items():
            if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != checksum:
                raise ValueError(f"{self.folder / name} has changed since the export; copy it anew")
        self.session = onnxruntime.InferenceSession(self.folder / "policy.onnx")
        self.reset()

    def reset(self) -> None:
        self.states = {entry["name"]: np.zeros(entry["shape"]) for entry in self.card["inputs"]}

    def act(self, observation: Any, action_mask: Any = None) -> Any:
        given = self.states | {"action_mask": action_mask}
        feeds, actions = {}, {}
        for entry in self.card["inputs"]:
            name, path = entry["name"], entry["path"]
            if entry["role"] == "observation":
                given[name] = observation[path[0]] if path else observation
            array = np.asarray(given[name])
            if array.ndim == 3 and entry["shape"] == [array.shape[2], *array.shape[:2]]:
                array = np.moveaxis(array, 2, 0)  # an image with its channels last
            if list(array.shape) != entry["shape"]:
                raise ValueError(f"{name} has shape {array.shape}, it needs {entry['shape']}")
            if name == "action_mask" and not np.logical_or.reduceat(array, entry["starts"]).all():
                raise ValueError("the action mask leaves a choice without a legal option")
            feeds[name] = np.expand_dims(array.astype(entry["dtype"]), entry["batch_axis"])
        outputs = self.session.run([entry["name"] for entry in self.card["outputs"]], feeds)
        for entry, array in zip(self.card["outputs"], outputs, strict=True):
            value = array.take(0, axis=entry["batch_axis"])
            if entry["role"] == "next_state":
                self.states[entry["name"].removeprefix("next_")] = value
            else:
                actions["/".join(entry["path"])] = value.astype(entry["space"]["dtype"])
        return actions.get("", actions)

    def check(self) -> None:
        examples = np.load(self.folder / "examples.npz")
        feeds = {entry["name"]: examples[entry["name"]] for entry in self.card["inputs"]}
        for entry in self.card["outputs"]:
            (output,) = self.session.run([entry["name"]], feeds)
            np.testing.assert_allclose(output, examples[entry["name"]], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    Agent().check()
    print("The files are those of the export, and the actions of the examples are the same.")
