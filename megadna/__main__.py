"""`python -m megadna ...` is `megadna ...`."""

from megadna.cli import main

if __name__ == "__main__":
    main()
