"""Methods that match the training trajectories of experts."""
