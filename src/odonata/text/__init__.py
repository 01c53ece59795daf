"""Tokenizers, vocabularies and the cleaning rules of checkpoint families."""
