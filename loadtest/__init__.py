"""Load tests with Locust that compare every answer with the checkpoint's, and the search for a server's capacity."""


class CannotRunError(Exception):
    """The load test cannot be made; one line that names the file or address and what is allowed."""
