"""Where ``contract-memory`` begins: what comes before the commands are there, which takes most of a second."""

from __future__ import annotations

from contract_engine.cli.signals import leave_at_once


def main() -> None:
    """Run the command line."""
    leave_at_once()
    from contract_engine.cli import app  # the reason for this module: nearly all that is imported is imported by it

    app.main()
