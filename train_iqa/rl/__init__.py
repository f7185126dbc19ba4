"""Reinforcement learning of the two-round protocol, one concept per file; the trainer is `train_iqa.grpo`."""
