"""Real TorchServe: local instances, their management API, and model archives.

Knows nothing of queries, groups or codes in flight. Modules: `launcher`, `management`, `archive`; `commands` for the
command line.
"""
