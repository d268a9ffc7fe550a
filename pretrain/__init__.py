"""Pretraining of small Llama models on stories."""
