"""Summarizers: what turns the messages that leave the buffer into a text that stays."""

from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.request import Facts, FactsRequest, FactsWriter, Summarizer, SummaryRequest

__all__ = ["ExtractiveSummarizer", "Facts", "FactsRequest", "FactsWriter", "Summarizer", "SummaryRequest"]
