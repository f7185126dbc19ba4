"""What SFT and RL share: the policy and its adapters, a learner on accelerate, updates, resumable state, metrics."""
