"""The numbers that a model computes in."""

from typing import Literal

DtypeName = Literal["float32", "bfloat16"]
