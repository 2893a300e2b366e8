"""Findings about an environment, and the report that lists them."""

import contextlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "note"]
_LEVELS: tuple[Level, ...] = ("error", "warning", "note")


class Finding(NamedTuple):
    """
    One problem of an environment, or one fact worth knowing.

    :param level: "error": training would fail or go wrong; "warning": probably not intended;
        "note": worth knowing
    :param what: Description of the problem
    :param remedy: Advice on how to solve it
    """

    level: Level
    what: str
    remedy: str


class Report(NamedTuple):
    """
    Result of :func:`check_marl_env`.

    :param name: Name of the environment
    :param findings: Findings, errors first
    :param summary: Description of the spaces, the state and the rewards that the algorithms will
        see, line by line; empty if the environment cannot be joined
    """

    name: str
    findings: list[Finding]
    summary: list[str]

    @property
    def ok(self) -> bool:
        """
        :return: Whether there are no errors
        """
        return not any(finding.level == "error" for finding in self.findings)

    def __str__(self) -> str:
        counts = []
        for level in _LEVELS:
            n = sum(finding.level == level for finding in self.findings)
            plural = "" if n == 1 else "s"
            counts.append(f"{n} {level}{plural}")
        lines = [f"{self.name}: {', '.join(counts)}"]
        for finding in self.findings:
            lines += ["", f"{finding.level.upper()}: {finding.what}", f"  -> {finding.remedy}"]
        if self.summary:
            lines += ["", "What the algorithms will see:"]
            lines += [f"  {line}" for line in self.summary]
        return "\n".join(lines)


class Findings:
    """Collection of findings. Repeated findings of the same kind are kept once."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}

    def add(self, level: Level, what: str, remedy: str, key: str | None = None) -> None:
        """
        Add a finding, unless one with the same level and key is there.

        :param level: Severity
        :param what: Description of the problem
        :param remedy: Advice on how to solve it
        :param key: Identity of the finding; ``what`` by default
        """
        self._findings.setdefault((level, key or what), Finding(level, what, remedy))

    def failed(self) -> bool:
        """
        :return: Whether there are errors
        """
        return any(finding.level == "error" for finding in self._findings.values())

    def in_order(self) -> list[Finding]:
        """
        :return: All findings, errors first
        """
        return sorted(self._findings.values(), key=lambda finding: _LEVELS.index(finding.level))

    @contextlib.contextmanager
    def reporting(self, activity: str, remedy: str) -> Iterator[None]:
        """
        Turn an exception inside the ``with`` block into an error finding.

        :param activity: Name of what the block does, for the finding
        :param remedy: Advice if it fails
        """
        try:
            yield
        except Exception as error:  # user code may raise anything
            self.add_exception(activity, error, remedy)

    def add_exception(self, activity: str, error: Exception, remedy: str) -> None:
        """
        Add an error finding about an exception.

        :param activity: Name of what raised it
        :param error: Exception
        :param remedy: Advice
        """
        self.add("error", f"{activity} raises {type(error).__name__}: {error}", remedy)
