"""The relay itself: values, asks, verdicts, the loop and its two drivers.

This package knows nothing about LangChain, llama.cpp, the network or the clock; it imports the
standard library only. `docs/design.md` has the picture.
"""
