"""A day of a cluster in simulated time: its traffic, its replicas, and what decides how many there are."""
