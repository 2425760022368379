"""`python -m dispatcher.cli`."""

from dispatcher.cli import main

if __name__ == "__main__":
    main()
