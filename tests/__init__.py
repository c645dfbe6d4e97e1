"""A package, so that pytest puts the repository on the import path and not this folder, which has a pipeline/ too."""
