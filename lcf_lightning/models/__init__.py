"""Frozen language models: loading, their KV caches, and what makes two of them a pair."""
