"""RAIN: a frozen language model searches over its own next token sets, judges them, and rewinds."""
