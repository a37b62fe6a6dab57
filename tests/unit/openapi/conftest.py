"""Answers of routes over services in memory are held against the document."""

from tests.support.http.fixtures import client, services

__all__ = ["client", "services"]
