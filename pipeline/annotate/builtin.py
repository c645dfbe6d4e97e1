"""Imports every built-in annotator, so that recipes find them by name. Their models are loaded when they are asked."""

import importlib

_MODULES: tuple[str, ...] = ("caption", "language", "blocklist", "boilerplate", "fluency", "meta", "recaption")
_MODULES += ("image", "hashes", "overlay", "nsfw", "pair", "evaluation", "similarity")

for _module in _MODULES:
    importlib.import_module(f"pipeline.annotate.{_module}")
