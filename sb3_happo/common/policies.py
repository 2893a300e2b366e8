"""Former place of the policies, kept for saved models, whose files name their classes by it."""

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import GruJointPolicy, JointPolicy, LstmJointPolicy

__all__ = ["AgentPolicy", "GruJointPolicy", "JointPolicy", "LstmJointPolicy"]
