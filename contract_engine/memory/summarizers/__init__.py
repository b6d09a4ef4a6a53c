"""Summarizers: what turns the messages that leave the buffer into a text that stays."""

from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.request import Summarizer, SummaryRequest

__all__ = ["ExtractiveSummarizer", "Summarizer", "SummaryRequest"]
