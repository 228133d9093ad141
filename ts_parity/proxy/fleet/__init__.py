"""What the instances host, and how far they are believed: asked, read, and made into the engine's plan."""
