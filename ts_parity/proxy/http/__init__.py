"""Bytes: sockets, TLS, heads, bodies and chunks, at the clients' door and at the instances'. Knows no models."""
