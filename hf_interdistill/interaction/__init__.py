"""Interaction distillation: text, units, maps, loss."""
