"""What only TorchServe needs: its routes, its management API, its errors, and wrapped archives."""
