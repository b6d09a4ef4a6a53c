"""Session memory for LLM orchestrators; the library is :mod:`contract_engine.memory`."""
