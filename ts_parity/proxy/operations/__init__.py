"""What operators need: admin port, status, signals, draining, several processes on one port."""
