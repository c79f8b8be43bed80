"""The command line: ``main`` builds the parser, and every command is a file of its own."""
