"""COMA: Counterfactual Multi-Agent policy gradients."""

from sb3_happo.coma.coma import COMA

__all__ = ["COMA"]
