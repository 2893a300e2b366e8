"""Names that mean nothing, and the nearest ones that do."""

import difflib
from collections.abc import Iterable


def check_names(
    given: Iterable[str], known: Iterable[str], where: str, names: Iterable[str] | None = None
) -> None:
    """
    :param given: Names of keyword arguments
    :param known: Those that there are
    :param where: Where they were given, for the error
    :param names: Among which to look for what was meant; by default ``known``
    :raises ValueError: If one means nothing
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known if names is None else sorted(names), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
            raise ValueError(f"{where} knows no {name!r}. {hint}")
