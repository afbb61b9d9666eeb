"""Measuring this machine: kernels and a serving loop, timed with PyTorch.

The rows are written in the project's own formats of measurements, so that laws can be fitted to
them.

PyTorch is an optional extra (``rackcast[measure]``) and is loaded by `sim.measuring.device` when a
measurement starts, never when a module is imported. What differs between a CPU and a GPU is in
that module too.
"""
