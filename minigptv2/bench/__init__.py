"""minigptv2 bench: ratios of two things, measured in one run."""
