"""One module per source of images and captions; each exports one `SOURCE`."""
