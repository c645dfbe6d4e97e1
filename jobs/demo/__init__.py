"""The demo: a real corpus of images and captions from package registries, served over HTTP on loopback."""
