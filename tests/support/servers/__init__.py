"""Real servers that tests start: the product itself, Postgres, an object store; their ports and processes."""
