"""`python -m wsiseg`: the command line."""

from wsiseg.cli import main

if __name__ == "__main__":
    main()
