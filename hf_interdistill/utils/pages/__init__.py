"""Pages that people look at: one shell for all, plots as SVG, prompts as conversations. They need nothing else."""
