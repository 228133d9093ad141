"""What is known of each kind of server: one file a kind, named like the setting."""
