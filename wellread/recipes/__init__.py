"""Recipes: what differs between fine-tuning and pretraining, a class each."""
