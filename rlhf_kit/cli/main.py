"""`rlhf-kit`: the list of verbs."""

from __future__ import annotations

import click

import rlhf_kit
from rlhf_kit.cli.lazy import ErrorGroup

_EPILOG = (
    "Exit codes: 0 done; 2 the recipe or a plugin is wrong; 3 the data is wrong or the disk full; "
    "4 a numerical guard stopped the run; 130, 143 and 129 stopped and saved (Ctrl-C, SIGTERM, "
    "SIGHUP)."
)


@click.group(
    cls=ErrorGroup,
    lazy={
        "run": ("rlhf_kit.cli.run:run", "Run a recipe, or go on with an interrupted run."),
        "check": ("rlhf_kit.cli.check:check", "Check a recipe in a second, without running it."),
        "plugins": ("rlhf_kit.cli.plugins:plugins", "See what can be used in a recipe."),
        "superseded": (
            "rlhf_kit.cli.superseded:superseded",
            "List, or delete, what changed recipes have set aside.",
        ),
        "doctor": ("rlhf_kit.cli.doctor:doctor", "Describe this machine and installation."),
    },
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the stack of an error, too.")
@click.version_option(rlhf_kit.__version__, prog_name="rlhf-kit")
def main(debug: bool) -> None:
    """RLHF from YAML recipes, with every part a plugin.

    Start with `rlhf-kit check RECIPE`, then `rlhf-kit run RECIPE`.
    """


if __name__ == "__main__":
    main()
