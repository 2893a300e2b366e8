"""A2PO: Agent-by-agent Policy Optimisation."""

from sb3_happo.a2po.a2po import A2PO

__all__ = ["A2PO"]
