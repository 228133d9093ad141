"""The proxy, in four rooms: `http` moves bytes, `fleet` knows what the instances host, `serving` answers requests
through the engine, `operations` is for whoever runs it. `app` puts them together; `commands` are typed by operators.
"""
