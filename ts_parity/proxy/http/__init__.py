"""Bytes: sockets, TLS, heads, bodies and chunks, on the clients' side and the instances'. Knows no models."""
