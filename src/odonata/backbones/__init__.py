"""Towers that methods stand on, behind one interface."""
