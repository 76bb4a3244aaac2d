"""``python -m rlhf_kit``: the command line."""

from rlhf_kit.cli.main import main

if __name__ == "__main__":
    main(prog_name="rlhf-kit")
