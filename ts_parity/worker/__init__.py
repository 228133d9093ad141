"""The worker side: runs inside TorchServe around the user's handler, and in process when a protection is trained.

Knows torch and TorchServe's Python classes. Knows nothing of proxies, of when groups are sent, or of which worker is
late.
"""
