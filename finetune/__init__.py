"""Instruction fine-tuning: compile a corpus, train on it, export the model."""
