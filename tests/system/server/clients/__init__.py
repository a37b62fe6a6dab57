"""Other people's clients against the real server; what they need comes from `make clients`."""
