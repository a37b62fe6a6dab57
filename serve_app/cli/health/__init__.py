"""The commands that look whether a machine and a server are well, and what they do."""
