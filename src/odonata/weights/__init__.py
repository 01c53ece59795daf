"""Published checkpoint layouts and ours, both ways."""
