"""Training one configuration: the epochs as an iterator, checkpoints, schedules, optimisers."""
