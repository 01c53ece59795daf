"""The street door: command line, Python façade and reports."""
