"""A client of OpenAI-compatible servers, with limits, a transcript and its replay."""
