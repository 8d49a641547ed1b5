"""`python -m hf_interdistill.embedded NAME` prints a model's folder, for shell commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .conversion import model_folder
from .sources import SOURCES


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the folder, or why there is none."""
    parser = argparse.ArgumentParser(prog="python -m hf_interdistill.embedded", description=__doc__)
    parser.add_argument("name", choices=sorted(SOURCES))
    try:
        print(model_folder(parser.parse_args(arguments).name, None))
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
