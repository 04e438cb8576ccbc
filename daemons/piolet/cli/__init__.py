"""The `piolet` command: a thin layer that parses arguments, calls the library, prints, and exits."""
