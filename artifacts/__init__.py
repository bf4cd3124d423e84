"""The artifact catalogue: every program the platform does not take from the distribution."""
