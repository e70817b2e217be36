"""`python -m toa_trl`."""

from toa_trl.cli.main import main

if __name__ == "__main__":
    main()
