"""Releases of model folders in a versioned bucket: what they are, where they lie, and how to get them, verified.

This package is plain Python. It knows nothing of TorchServe, torch, transformers or the stack around it, so that the same
code publishes, prefetches, and fetches inside a worker.
"""
