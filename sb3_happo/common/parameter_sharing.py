"""Agents that share one network."""

import itertools
from typing import Any

from sb3_happo.common.team_spaces import TeamSpaces


def make_groups(
    team: TeamSpaces,
    share_parameters: bool | list[list[str]],
    overrides: dict[str, dict[str, Any]],
) -> list[tuple[str, ...]]:
    """
    Groups of agents that share parameters.

    :param team: Spaces of the team
    :param share_parameters: False for no sharing; True for all agents whose spaces and overrides
        are equal; or groups of names
    :param overrides: Keyword arguments of single agents
    :return: Groups in the order of their first agents; most are one agent
    :raises ValueError: If a group names an unknown agent, an agent twice, or agents that differ
    """
    if share_parameters is False:
        return [(agent,) for agent in team.agents]
    forms = {}
    for agent in team.agents:
        action_space = team.action_space.spaces[agent]
        forms[agent] = (team.own[agent], action_space, overrides.get(agent, {}))
    if share_parameters is True:
        return _equal_agents(forms)
    groups = [tuple(map(str, group)) for group in share_parameters]
    named = list(itertools.chain.from_iterable(groups))
    for agent in named:
        team.check_agent(agent, "policy_kwargs['share_parameters']")
    distinct = set(named)
    if len(named) != len(distinct):
        raise ValueError(
            f"policy_kwargs['share_parameters'] names an agent twice: {list(map(list, groups))}"
        )
    for group in groups:
        _check_group(group, forms)
    return groups + [(agent,) for agent in team.agents if agent not in distinct]


def _check_group(group: tuple[str, ...], forms: dict[str, tuple[Any, ...]]) -> None:
    """Raise if agents of different form shall share parameters."""
    for agent in group[1:]:
        if forms[agent] != forms[group[0]]:
            raise ValueError(
                f"agents {group[0]!r} and {agent!r} cannot share parameters; their spaces or "
                f"kwargs differ ({forms[group[0]]} against {forms[agent]}); put them into "
                "different groups."
            )


def _equal_agents(forms: dict[str, tuple[Any, ...]]) -> list[tuple[str, ...]]:
    """Groups of agents of equal form."""
    groups: list[list[str]] = []
    for agent, form in forms.items():
        for group in groups:
            if forms[group[0]] == form:
                group.append(agent)
                break
        else:
            groups.append([agent])
    return [tuple(group) for group in groups]
