"""The life of a request: its route, its query in the engine, its tasks at the instances, its answer."""
