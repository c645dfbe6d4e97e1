"""A package, so that pytest puts the repository and not this folder on the import path: it has a folder pipeline too."""
