"""The errors that a user can cause and mend. The command line prints them without a traceback; its status is then 2."""


class OdonataError(ValueError):
    """Something that the user gave is wrong: the message names what, where, and what to do about it."""


class DataError(OdonataError):
    """A file, row, picture or caption cannot be used."""


class WeightsError(OdonataError):
    """A checkpoint cannot be read, or does not fit the architecture."""


class RecipeError(OdonataError):
    """A recipe, or an option of it, is unknown or contradicts another."""


class RunError(OdonataError):
    """A run folder cannot be used, or a run had to stop."""
