"""What the field reports, computed the way the field computes it."""
