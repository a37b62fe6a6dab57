"""What is looked at: each function yields what it found as soon as it knows it, and changes nothing that stays."""
