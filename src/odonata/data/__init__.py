"""Sources on disk, keyed transforms, loaders and the embedded sets."""
