"""Instruction fine-tuning: prepare the corpus, train on it."""
