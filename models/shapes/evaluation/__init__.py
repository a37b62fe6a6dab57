"""What the included model is worth: clips of many prompts, made, read back, counted, with their card and pictures."""
