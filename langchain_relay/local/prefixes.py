"""Evaluated system prompts on disk: what they are, and when they are saved and put back."""
