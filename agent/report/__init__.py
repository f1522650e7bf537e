"""What a researcher reads: notes, plots and checked prose."""
