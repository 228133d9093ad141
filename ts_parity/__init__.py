"""Erasure-coded predictions for TorchServe. Importing this package is cheap: no torch, no aiohttp."""

__version__ = "0.1.0"
