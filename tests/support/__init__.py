"""What tests share: builders of tiny models and data, runs, faults, and a Hub on loopback."""
