"""What the tests share: fakes, worlds of parts, real servers; no file of tests imports another."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
