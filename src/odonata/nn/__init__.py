"""Organs that two methods or more share."""
