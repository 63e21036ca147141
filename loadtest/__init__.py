"""Load tests with Locust that compare every answer with the checkpoint's, and the search for a server's capacity."""
