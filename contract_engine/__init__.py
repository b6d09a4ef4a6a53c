"""contract_engine."""
