"""What is written beside a student so that servers can run it. Each file is copied as it stands."""
