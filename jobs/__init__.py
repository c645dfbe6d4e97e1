"""Where and when things run: the command line, recipes, Ray, Ray Train, the demo."""
