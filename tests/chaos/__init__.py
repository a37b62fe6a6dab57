"""Proof by chaos: jobs in flight while a part of a real server is killed, filled or moved in time.

Black box: requests over HTTP, processes, and the job database, which is only read.
"""
