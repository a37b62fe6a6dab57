"""Other people's clients: where `make clients` puts them, programs that use them, what they must get."""
