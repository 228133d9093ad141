"""The proxy. `server` and `upstream` are its doors, `plan` is what it knows, `driver` what it does, `app` its life."""
