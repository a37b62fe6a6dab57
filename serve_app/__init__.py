"""The control side: HTTP ingress, job registry, storage of results. It imports `deployments`, never the reverse."""
