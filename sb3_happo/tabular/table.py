"""Tables that grow with the states that are met."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sb3_happo.tabular.state_keys import key_from_json, key_to_json

_FIRST_CAPACITY = 64


class Column(NamedTuple):
    """
    Column of a table.

    :param shape: Shape of an entry
    :param initial: Value of the entries of a new state, a number or an array of ``shape``
    """

    shape: tuple[int, ...]
    initial: Any = 0.0


class Table:
    """
    Numbers by state, in arrays that grow.

    :param name: Name of the table, for errors
    :param columns: Columns by name
    :param max_states: Number of states after which the table is full
    """

    def __init__(self, name: str, columns: Mapping[str, Column], max_states: int) -> None:
        self.name = name
        self.columns = dict(columns)
        self.max_states = max_states
        #: Row of each state
        self.rows: dict[Hashable, int] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._capacity = 0
        self._grow(_FIRST_CAPACITY)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        """
        :param column: Name of a column
        :return: Numbers of the column, ``(capacity, *shape)``, of which the first rows are in
            use; another array after the table has grown
        """
        return self._arrays[column]

    def row(self, state: Hashable) -> int:
        """
        :param state: Key of a state
        :return: Row of the state, a new one for a new state
        :raises RuntimeError: If the table is full
        """
        index = self.rows.get(state)
        if index is None:
            index = len(self.rows)
            if index >= self.max_states:
                raise RuntimeError(
                    f"The table of {self.name} has reached max_states={self.max_states}, and the "
                    f"state {state!r} is new. Raise max_states if the game has more states; "
                    "otherwise let state_key= join states, or learn with networks."
                )
            if index >= self._capacity:
                self._grow(2 * self._capacity)
            self.rows[state] = index
        return index

    def _grow(self, capacity: int) -> None:
        for name, (shape, initial) in self.columns.items():
            grown = np.empty((capacity, *shape))
            grown[:] = initial
            if self._capacity:
                grown[: self._capacity] = self._arrays[name]
            self._arrays[name] = grown
        self._capacity = capacity

    def to_plain(self) -> dict[str, Any]:
        """
        :return: Content for a file: keys, and arrays by column
        """
        n = len(self)
        content: dict[str, Any] = {"keys": [key_to_json(key) for key in self.rows]}
        for name, array in self._arrays.items():
            content[name] = array[:n].copy()
        return content

    def fill(self, content: Mapping[str, Any]) -> None:
        """
        Take over the content of a file.

        :param content: Result of :meth:`to_plain`
        :raises ValueError: If it is not that of a table of this form
        """
        keys = [key_from_json(key) for key in content["keys"]]
        arrays = {}
        for name, (shape, _) in self.columns.items():
            array = np.asarray(content.get(name))
            if array.shape != (len(keys), *shape):
                raise ValueError(
                    f"The column {name!r} of the table of {self.name} has shape {array.shape} in "
                    f"the file, and {(len(keys), *shape)} here."
                )
            arrays[name] = array
        self.rows = {key: index for index, key in enumerate(keys)}
        self._capacity = 0
        self._grow(max(_FIRST_CAPACITY, len(keys)))
        for name, array in arrays.items():
            self._arrays[name][: len(keys)] = array
