"""This service against the usual ways to serve the same model: README.md beside this says how it is run."""
