"""Small programs' parts that stand alone beside the memory service."""
