"""What the instances host: asked for, parsed, and turned into the engine's plan."""
