"""Subcommands of `zoomiqa` that need the extra `restoration`; how they are found: `zoomiqa_reward.cli`."""
