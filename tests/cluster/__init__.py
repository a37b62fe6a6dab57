"""Proof on a cluster: real Ray nodes as pods in namespaces of one machine, with the manifests' groups and environment.

Black box as `tests/chaos`, whose clients, requests and judge it shares. Linux and root alone.
"""
