"""Mochi 1 as its authors describe it, in plain torch: what our own way to a video is held against.

Written from the code that the authors published (genmoai/mochi, Apache-2.0), not from diffusers, whose class names and
layouts appear here only where weights are looked up. Nothing is cached, batched, chunked or fused.
"""
