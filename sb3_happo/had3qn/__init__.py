"""HAD3QN: Heterogeneous-Agent Dueling Double Deep Q-Network."""

from sb3_happo.had3qn.had3qn import HAD3QN

__all__ = ["HAD3QN"]
