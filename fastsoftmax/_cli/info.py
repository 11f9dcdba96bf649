"""``info``: what runs where."""

from __future__ import annotations

import argparse

from .. import show_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    show_config()
    return 0
