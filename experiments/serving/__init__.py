"""Serves models in a browser: jobs, uploads, HTTP, and the page (`python -m experiments.serve`)."""
