"""The operations console: pages and an API over the library that the command line uses, too."""
