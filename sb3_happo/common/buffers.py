"""Former place of the rollout buffer, kept for saved models, whose files name its class by it."""

from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer

__all__ = ["MultiAgentRolloutBuffer"]
