"""Pretraining small models on raw text, as in llama2.c."""
