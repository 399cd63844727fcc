"""What Prometheus and the live page are shown, read from the state when they ask for it."""
