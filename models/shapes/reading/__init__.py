"""Reading back from a clip what it shows, without a model."""
