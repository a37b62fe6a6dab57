"""Whether a machine or a cluster is fit for the server, before a start and after one, and what to do if not."""
