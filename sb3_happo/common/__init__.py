"""What every algorithm of the family shares: policies, critics, the rollout buffer and the training loop."""
