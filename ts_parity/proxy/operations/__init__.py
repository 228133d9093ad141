"""For whoever runs the proxy: admin port, status, signals, several processes on one port."""
