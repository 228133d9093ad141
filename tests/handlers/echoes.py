"""Says what it was given: types and values of its inputs, and its headers."""

import json


def handle(data, context):
    if data is None:
        return None
    return [
        json.dumps(
            {
                "data": {name: [type(value).__name__, repr(value)] for name, value in row.items()},
                "headers": dict(context.get_all_request_header(index)),
            },
            sort_keys=True,
        )
        for index, row in enumerate(data)
    ]
