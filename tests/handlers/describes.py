"""Has a describe answer of its own."""

from overrides_steps import VectorHandler


class Describes(VectorHandler):
    def describe_handle(self):
        return {"labels": self.names}
