"""``python -m scenarium.core.cli``."""

from scenarium.core.cli import main

main()
