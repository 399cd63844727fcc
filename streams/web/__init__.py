"""The HTTP server: metrics, health, and the live page."""
