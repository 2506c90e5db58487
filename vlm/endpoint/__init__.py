"""Asking a text model through an OpenAI-compatible endpoint: retries, limits, a cap on the cost, a log and a cache."""
