"""The worker side: runs inside TorchServe beside the user's handler, and in process when a parity model is trained.

Knows torch and TorchServe's Python classes. Knows nothing of proxies, groups' timing or which worker is late.
"""
