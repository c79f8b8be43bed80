"""The command line. ``main`` builds the parser, and every command has a file of its own."""
