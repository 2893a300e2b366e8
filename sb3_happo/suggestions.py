"""Nearest names for error messages: "did you mean ...?"."""

import difflib
from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """
    Known names that are spelt like a wrong one.

    :param name: Unknown name
    :param known: Known names
    :param n: Maximum number of names to return
    :param cutoff: Minimum similarity in [0, 1]; at 0 the nearest names are returned however far
        they are
    :return: The nearest names, best first; empty if none is similar enough
    """
    return difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)


def did_you_mean(
    name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6, otherwise: str = ""
) -> str:
    """
    Sentence for an error message about an unknown name.

    :param name: Unknown name
    :param known: Known names
    :param n: Maximum number of names to suggest
    :param cutoff: Minimum similarity in [0, 1]
    :param otherwise: Text to return if no name is similar enough
    :return: ``"Did you mean 'a', 'b'?"``, or ``otherwise``; without surrounding spaces
    """
    near = nearest_names(name, known, n, cutoff)
    if not near:
        return otherwise
    return f"Did you mean {', '.join(map(repr, near))}?"


def check_names(
    given: Iterable[str], known: Iterable[str], where: str, candidates: Iterable[str] | None = None
) -> None:
    """
    Refuse unknown keyword arguments.

    :param given: Names of the keyword arguments that were given
    :param known: Names of the accepted keyword arguments
    :param where: Name of the function or argument that takes them, for the error message
    :param candidates: Names among which to search for a suggestion; ``known`` by default
    :raises ValueError: If a name is unknown
    """
    known = sorted(known)
    candidates = known if candidates is None else sorted(candidates)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, candidates, otherwise=f"There are {', '.join(known)}.")
            raise ValueError(f"{where} knows no {name!r}. {hint}")
