"""Pretraining small models on raw text, in the style of llama2.c."""
