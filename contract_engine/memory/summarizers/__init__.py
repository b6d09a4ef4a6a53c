"""Summarizers: what turns the messages that leave the buffer into a text that stays."""

from contract_engine.memory.summarizers.chat_model import ModelAnswer
from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.gate import GateSettings
from contract_engine.memory.summarizers.model import ModelSummarizer
from contract_engine.memory.summarizers.model_stats import CountedWriter, ModelStats
from contract_engine.memory.summarizers.openai_chat import OpenAIChat
from contract_engine.memory.summarizers.prompt import SummaryPrompt
from contract_engine.memory.summarizers.request import Facts, FactsRequest, FactsWriter, Summarizer, SummaryRequest

__all__ = [
    "CountedWriter",
    "ExtractiveSummarizer",
    "Facts",
    "FactsRequest",
    "FactsWriter",
    "GateSettings",
    "ModelAnswer",
    "ModelStats",
    "ModelSummarizer",
    "OpenAIChat",
    "Summarizer",
    "SummaryPrompt",
    "SummaryRequest",
]
