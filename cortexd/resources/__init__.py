"""The HTTP resources of the gateway."""
