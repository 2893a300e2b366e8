"""Numbered rows of a replay buffer, which files hold."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer


class NumberedRows(ReplayBuffer):
    """
    Part of a replay buffer that numbers its rows, so that files can hold those that are new. A row
    is a step of all environments. The row with the number ``n`` has the index ``n % buffer_size``.

    A subclass with arrays of its own overrides :meth:`arrays`, and counts :attr:`n_added` up when a
    row is written.
    """

    #: Names of the arrays that are made when they are needed, and are ones before
    optional: ClassVar[frozenset[str]] = frozenset()
    #: Number of the row that is written next
    n_added: int = 0
    #: Number of the first row since the last :meth:`reset`, a multiple of ``buffer_size``
    origin: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """
        Hook: arrays that files hold.

        :return: Arrays by name, ``(buffer_size, n_envs, ...)`` each; without those of
            :attr:`optional` that were not needed so far
        """
        raise NotImplementedError

    def allocate(self, names: Collection[str]) -> None:
        """
        Hook: make arrays that were not needed so far.

        :param names: Names of all arrays that are needed
        """

    @property
    def first_row(self) -> int:
        """
        :return: Number of the oldest row that the buffer holds
        """
        return max(self.origin, self.n_added - self.buffer_size)

    def reset(self) -> None:
        """Forget all transitions."""
        n_rounds = -(-self.n_added // self.buffer_size)
        self.forget(n_rounds * self.buffer_size)

    def forget(self, origin: int = 0) -> None:
        """
        Forget all transitions.

        :param origin: Number of the row that is written next, a multiple of ``buffer_size``
        """
        super().reset()
        self.n_added = self.origin = origin

    def rows(self, start: int, stop: int) -> dict[str, list[np.ndarray]]:
        """
        :param start: Number of the first row, at least :attr:`first_row`
        :param stop: Number behind the last row, at most :attr:`n_added`
        :return: Rows of each array: one or two parts in their order, ``(n_rows, n_envs, ...)``,
            which share memory with the buffer
        :raises ValueError: If the buffer does not hold these rows
        """
        if not self.first_row <= start <= stop <= self.n_added:
            raise ValueError(
                f"The replay buffer holds the rows {self.first_row} to {self.n_added}, and not "
                f"{start} to {stop}."
            )
        slices = self._slices(start, stop)
        return {name: [own[part] for part in slices] for name, own in self.arrays().items()}

    def set_rows(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """
        Write rows that :meth:`rows` has returned. The next row is the one after them.

        :param start: Number of the first row
        :param rows: Arrays, ``(n_rows, n_envs, ...)`` each
        :raises ValueError: If an array is missing, unknown, or of another shape
        """
        self.allocate(rows.keys())
        arrays = self.arrays()
        n_rows = len(next(iter(rows.values()), ()))
        needed = arrays.keys() - self.optional
        if not needed <= rows.keys() <= arrays.keys():
            raise ValueError(f"This replay buffer has {sorted(arrays)}, and not {sorted(rows)}.")
        slices = self._slices(start, start + n_rows)
        for name, array in arrays.items():
            shape = (n_rows, *array.shape[1:])
            own = rows[name] if name in rows else np.ones(shape, array.dtype)
            _check_rows(name, own, shape, array.dtype)
            begin = 0
            for part in slices:
                end = begin + part.stop - part.start
                array[part] = own[begin:end]
                begin = end
        self.n_added = start + n_rows
        self.pos = self.n_added % self.buffer_size
        self.full = self.n_added - self.origin >= self.buffer_size

    def _slices(self, start: int, stop: int) -> list[slice]:
        """Places of rows in the arrays: one or two slices, in the order of the rows."""
        if start == stop:
            return [slice(0, 0)]
        begin = start % self.buffer_size
        end = begin + stop - start
        if end <= self.buffer_size:
            return [slice(begin, end)]
        return [slice(begin, self.buffer_size), slice(0, end - self.buffer_size)]


def _check_rows(name: str, rows: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if rows.shape != shape or rows.dtype != dtype:
        raise ValueError(
            f"The rows of {name} are {rows.dtype} of the shape {rows.shape}, and the replay buffer "
            f"has {dtype} of the shape {shape}."
        )
