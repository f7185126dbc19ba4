"""Reinforcement learning of the two-round protocol, one concept a file; the trainer is `train_iqa.grpo`."""
