"""From a trained reward model to a repository on the Hub: its files, its card, the upload."""
