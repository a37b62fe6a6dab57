"""What a worker is connected to, in memory, and what may happen to samples on their way."""
