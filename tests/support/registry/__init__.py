"""The registry and its database without Ray: worlds that fail on purpose, and jobs moved by SQL."""
