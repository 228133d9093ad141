"""The proxy, in four rooms: `http` moves bytes, `fleet` knows what the instances host, `serving` answers requests
through the engine, `operations` is for operators. `app` puts them together; `commands` holds serve, status and drain.
"""
