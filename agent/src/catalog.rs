//! Turns catalogue files into probes: which function is which operation, and what to read from it.
