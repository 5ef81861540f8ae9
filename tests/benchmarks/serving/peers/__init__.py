"""Benchmark this service against other ways to serve the same model. Run it as described in __main__.py."""
