"""The loop and what it steps: optimizer, schedule, checkpoints, evaluation."""
