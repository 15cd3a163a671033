"""`python -m metaopt` is the command `metaopt`."""

from metaopt.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
