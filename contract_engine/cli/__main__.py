"""``python -m contract_engine.cli`` is ``contract-memory``."""

from contract_engine.cli import main

main()
