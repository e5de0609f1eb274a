"""`python -m atent_ext` is the command `atent`."""

from atent_ext.cli.app import main

if __name__ == "__main__":
    main()
